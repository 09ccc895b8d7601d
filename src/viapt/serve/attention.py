"""Where a task looks in a picture: `viapt.explanation`, as numbers that a page can draw."""

from __future__ import annotations

import base64
import io

from PIL import Image

from viapt.data.images import read_image
from viapt.data.transforms import ImageTransform
from viapt.errors import BackboneError
from viapt.explanation import layer_attention, lookers
from viapt.model import PromptedClassifier
from viapt.multitask import MultiTask
from viapt.serve.problems import from_error
from viapt.serve.schema import Attention

DIGITS = 6  # of a share of attention: a map of 37 x 37 patches has shares of about 0.0007


def attend(
    tasks: MultiTask, model: PromptedClassifier, transform: ImageTransform, data: bytes, name: str, pixels: int
) -> Attention:
    """The picture as the task sees it, and who looks where, in the place of a pass.

    Args:
        tasks: whose turn this takes.
        model: one of them.
        transform: that of the backbone, for evaluation.
        data: an encoded image.
        name: what errors call it.
        pixels: that it may have.

    Raises:
        DataError: the image cannot be read.
        Problem: the task's attention cannot be seen (422, `no_attention`).
    """
    seen = transform.prepare(read_image(data, name=name, max_pixels=pixels))
    with tasks.turn():
        try:
            found = layer_attention(model, transform.finish(seen)[None].to(tasks.device))
        except BackboneError as error:
            raise from_error(422, "no_attention", error) from error
    maps = {who: where.astype(float).round(DIGITS).tolist() for who, where in lookers(model, found, 0).items()}
    picture = io.BytesIO()
    Image.fromarray(seen.permute(1, 2, 0).numpy()).save(picture, "PNG")
    return Attention(
        picture="data:image/png;base64," + base64.b64encode(picture.getvalue()).decode(),
        layers=found.maps.shape[1],
        maps=maps,
        on_prompts=found.on_prompts[0].tolist(),
        on_prefix=found.on_prefix[0].tolist(),
    )
