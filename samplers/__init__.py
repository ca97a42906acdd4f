"""The mathematics of Guidekit. Imports torch and, where needed, einops, kornia, safetensors; never ComfyUI."""
