"""The mathematics of Guidekit. Imports torch and, where needed, einops, torchvision, safetensors; never ComfyUI."""
