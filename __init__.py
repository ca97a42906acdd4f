"""Guidekit: guidance, exact inversion and preference alignment for diffusion models in ComfyUI."""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    # Imported here so that `guidekit.samplers` can be used from plain Python, without a host.
    from .nodes import GuidekitExtension

    return GuidekitExtension()
