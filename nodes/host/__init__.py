"""The only code of the pack that knows ComfyUI's internals. Line references are to ComfyUI 0.30.0."""
