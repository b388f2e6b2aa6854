"""diffusers' pipelines that draw from images, within masks and after control images, family by family, for families.py.

What each does with a batch, a strength and the random state was measured (tests/torchrun/test_input_models.py and, of edits
within masks, test_masked_edits.py try it again).
"""

from dglaunch.models.input_roles import InputPipeline, MaskPixels, Role, sdxl_first_step

IMAGE: tuple[Role, ...] = ("image",)
MASK: tuple[Role, ...] = ("image", "mask")
CONTROL: tuple[Role, ...] = ("control",)
IMAGE_CONTROL: tuple[Role, ...] = ("image", "control")
ALL: tuple[Role, ...] = ("image", "mask", "control")
REFERENCES = "its pipeline takes images as references for every row of a call; dglaunch edit does that"
"""Why a family that edits has none of these."""

FLUX = (
    InputPipeline(roles=IMAGE, pipeline="FluxImg2ImgPipeline", strength=0.6),
    InputPipeline(roles=MASK, pipeline="FluxInpaintPipeline", strength=0.6),
    InputPipeline(
        roles=CONTROL, pipeline="FluxControlNetPipeline", controlnet="FluxControlNetModel", control_scale=1.0
    ),
    InputPipeline(
        roles=IMAGE_CONTROL, pipeline="FluxControlNetImg2ImgPipeline", controlnet="FluxControlNetModel", strength=0.6,
        control_scale=1.0,
    ),
    InputPipeline(
        roles=ALL, pipeline="FluxControlNetInpaintPipeline", controlnet="FluxControlNetModel", strength=0.6,
        control_scale=1.0,
    ),
)  # fmt: skip
CHROMA = (
    InputPipeline(roles=IMAGE, pipeline="ChromaImg2ImgPipeline", strength=0.9),
    InputPipeline(
        roles=MASK, pipeline="ChromaInpaintPipeline", strength=0.6,
        refused="its inpainting pipeline asks the transformer for guidance embeddings, which Chroma's has not, and fails "
        "(diffusers 0.42.1)",
    ),
)  # fmt: skip
QWEN = (
    InputPipeline(roles=IMAGE, pipeline="QwenImageImg2ImgPipeline", strength=0.6),
    InputPipeline(roles=MASK, pipeline="QwenImageInpaintPipeline", strength=0.6),
    InputPipeline(
        roles=CONTROL, pipeline="QwenImageControlNetPipeline", controlnet="QwenImageControlNetModel", control_scale=1.0
    ),
)
ZIMAGE = (
    InputPipeline(roles=IMAGE, pipeline="ZImageImg2ImgPipeline", strength=0.6),
    InputPipeline(roles=MASK, pipeline="ZImageInpaintPipeline", strength=1.0),
    InputPipeline(
        roles=CONTROL, pipeline="ZImageControlNetPipeline", controlnet="ZImageControlNetModel", control_scale=0.75
    ),
)
SANA = (
    InputPipeline(
        roles=CONTROL, pipeline="SanaControlNetPipeline", controlnet="SanaControlNetModel", control_scale=1.0
    ),
)
GLOBAL_STATE = "its ControlNet pipeline draws the control image's latents from the global random state, so that no seed makes an image again"
HUNYUAN_DIT = (
    InputPipeline(
        roles=CONTROL, pipeline="HunyuanDiTControlNetPipeline", controlnet="HunyuanDiT2DControlNetModel", control_scale=1.0,
        refused=GLOBAL_STATE,
    ),
)  # fmt: skip
SD3 = (
    InputPipeline(roles=IMAGE, pipeline="StableDiffusion3Img2ImgPipeline", strength=0.6),
    InputPipeline(roles=MASK, pipeline="StableDiffusion3InpaintPipeline", strength=0.6),
    InputPipeline(
        roles=CONTROL, pipeline="StableDiffusion3ControlNetPipeline", controlnet="SD3ControlNetModel", control_scale=1.0,
        refused=GLOBAL_STATE,
    ),
)  # fmt: skip
SDXL = (
    InputPipeline(
        roles=IMAGE, pipeline="StableDiffusionXLImg2ImgPipeline", strength=0.3, first_step=sdxl_first_step,
        noise_alone=False,
    ),
    InputPipeline(
        roles=MASK, pipeline="StableDiffusionXLInpaintPipeline", strength=0.9999, first_step=sdxl_first_step
    ),
    InputPipeline(
        roles=CONTROL, pipeline="StableDiffusionXLControlNetPipeline", controlnet="ControlNetModel", control_scale=1.0,
        arguments={"control": "image"},
    ),
    InputPipeline(
        roles=IMAGE_CONTROL, pipeline="StableDiffusionXLControlNetImg2ImgPipeline", controlnet="ControlNetModel",
        strength=0.8, control_scale=0.8, first_step=sdxl_first_step, noise_alone=False,
    ),
    InputPipeline(
        roles=ALL, pipeline="StableDiffusionXLControlNetInpaintPipeline", controlnet="ControlNetModel", strength=0.9999,
        control_scale=1.0, first_step=sdxl_first_step,
    ),
)  # fmt: skip

KONTEXT_MASK = InputPipeline(roles=MASK, pipeline="FluxKontextInpaintPipeline", strength=1.0)
QWEN_EDIT_MASK = InputPipeline(roles=MASK, pipeline="QwenImageEditInpaintPipeline", strength=0.6)
KLEIN_MASK = InputPipeline(
    roles=MASK, pipeline="Flux2KleinInpaintPipeline", strength=0.8, mask_pixels=MaskPixels(16, (7, 8)), since="0.38.0"
)
"""Of edits: what is drawn has the size at which the image is encoded, whatever height and width say."""
