"""What can be asked about teaching over HTTP, and how a teaching is checked before anything is fitted."""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any
from unicodedata import normalize

from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from fastapi import Path as InPath

from viapt.adapter_files import TENSORS_LIMIT, read_file
from viapt.errors import ArtifactError, did_you_mean
from viapt.serve.limits import Limits
from viapt.serve.problems import Problem, from_error
from viapt.serve.schema import EpochInfo, FailureInfo, Teaching, TeachingInfo, TeachingList
from viapt.serve.teaching import FILES, Lesson, Teacher, holds_back

METHODS = ("viapt", "vpt-deep", "linear")
NAME = re.compile(r"[^\W_][\w.-]*( [\w.-]+)*")
LONGEST_NAME, LONGEST_CLASS = 60, 100  # characters; a folder's name has 255 bytes at most
SHOWN = 20  # problems
Id = Annotated[str, InPath(pattern="^[0-9a-f]{32}$", description="Of the teaching.")]
Check = Callable[[Sequence[UploadFile]], Awaitable[list[bytes | str]]]


def add_teaching(app: FastAPI, teacher: Teacher | None, limits: Limits, read: Check, in_time: Any) -> None:
    """The routes.

    Args:
        app: what they are added to.
        teacher: None: they answer that nothing is taught here.
        limits: of a request.
        read: uploads -> the bytes of each that is an image, or what is wrong with it.
        in_time: as in `viapt.serve.app`.
    """

    @app.post("/v1/teachings", response_model=Teaching, status_code=202)
    async def teach(
        request: Request,
        name: Annotated[str, Form(description="Of the new task.")],
        images: Annotated[list[UploadFile], File(description="Photos.")],
        labels: Annotated[list[str], Form(description="The class of each photo, in their order.")],
        classes: Annotated[
            list[str], Form(default_factory=list, description="All of them; none: those of the labels.")
        ],
        method: Annotated[str, Form(description=f"One of {', '.join(METHODS)}.")] = "viapt",
        epochs: Annotated[int, Form(description="Passes over the photos.")] = 20,
        replace: Annotated[bool, Form(description="Take the place of a task that was taught here.")] = False,
    ) -> Teaching:
        """Fit a new task in the background; one at a time. GET it to see how far it is."""
        teacher = there()
        teacher.check_free()
        labels = [normalize("NFC", label) for label in labels]
        names = [normalize("NFC", one) for one in classes] or list(dict.fromkeys(labels))
        found = problems_of(name, names, labels, len(images), method, epochs, limits)
        if len(images) > limits.photos:
            raise together(found)  # and none of them is decoded
        teacher.beginning = True
        try:
            photos = await in_time(read(images), request, limits.timeout)
            found += [photo for photo in photos if isinstance(photo, str)]
            if found:
                raise together(found)
            teacher.check_name(name, replace)
            counts = Counter(labels)
            lesson = Lesson(name, {label: counts[label] for label in names}, method, epochs)
            teacher.begin(lesson, list(zip(photos, labels, strict=True)))
        finally:
            teacher.beginning = False
        return report(lesson)

    @app.get("/v1/teachings", response_model=TeachingList)
    async def list_teachings() -> TeachingList:
        """The latest ones, oldest first."""
        teacher = there()
        return TeachingList(teachings=[report(teacher.look(lesson)) for lesson in teacher.lessons.values()])

    @app.get("/v1/teachings/{id}", response_model=Teaching)
    async def see_teaching(id: Id) -> Teaching:
        """How far it is, with the curve."""
        return report(there().look(lesson_of(id)))

    @app.delete("/v1/teachings/{id}", response_model=Teaching)
    async def cancel_teaching(id: Id) -> Teaching:
        """End it; one that has ended already stays as it is."""
        lesson = lesson_of(id)
        await there().cancel(lesson)
        return report(lesson)

    @app.get("/v1/tasks/{name}/adapter", response_class=Response, responses={200: {"content": {"application/zip": {}}}})
    def download(name: str) -> Response:
        """The adapter of a task that was taught here, as a ZIP archive of one folder."""
        teacher = there()
        if name not in teacher.taught:
            raise Problem(
                404,
                "unknown_task",
                f"No task {name!r} was taught here",
                remedy=did_you_mean(name, teacher.taught),
            )
        return Response(archive(teacher, name), media_type="application/zip")

    def there() -> Teacher:
        if teacher is None:
            raise Problem(403, "teaching_is_off", "Nothing is taught here", expected="a server with --teach")
        return teacher

    def lesson_of(id: str) -> Lesson:
        lesson = there().lessons.get(id)
        if lesson is None:
            raise Problem(404, "unknown_teaching", f"There is no teaching {id}", expected="one of GET /v1/teachings")
        return lesson


def offered(teacher: Teacher | None, limits: Limits) -> TeachingInfo | None:
    """What may be taught."""
    if teacher is None:
        return None
    return TeachingInfo(photos=limits.photos, classes=limits.classes, epochs=limits.epochs, methods=list(METHODS))


def problems_of(
    name: str, classes: list[str], labels: list[str], images: int, method: str, epochs: int, limits: Limits
) -> list[str]:
    """All that is wrong with what is to be taught, the photos aside."""
    found = []
    if len(name) > LONGEST_NAME or not NAME.fullmatch(name):
        found.append(
            f"the name {name[: 2 * LONGEST_NAME]!r} is not of letters, digits, single blanks and . _ - alone, with a "
            f"letter or digit first, and at most {LONGEST_NAME} characters"
        )
    if method not in METHODS:
        found.append(f"there is no method {method!r} here, but {', '.join(METHODS)}")
    if not 1 <= epochs <= limits.epochs:
        found.append(f"{epochs} epochs are not 1 to {limits.epochs}")
    if not 2 <= len(classes) <= limits.classes:
        found.append(f"{len(classes)} class(es) are not 2 to {limits.classes}")
    if images > limits.photos:
        found.append(f"{images} photos are more than {limits.photos}")
    if images != len(labels):
        found.append(f"there are {images} photos and {len(labels)} labels")
    found += [f"the class {label[:200]!r} occurs twice" for label, times in Counter(classes).items() if times > 1]
    for label in dict.fromkeys(classes):
        if not label.strip() or label != label.strip() or len(label) > LONGEST_CLASS or not label.isprintable():
            found.append(f"the class {label[:200]!r} is not of 1 to {LONGEST_CLASS} characters, without blanks around")
        elif label not in labels:
            found.append(f"the class {label!r} has no photos")
    unknown = [label for label in dict.fromkeys(labels) if label not in classes]
    return found + [f"the label {label[:200]!r} is not among the classes" for label in unknown]


def together(problems: list[str]) -> Problem:
    """All problems in one."""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return Problem(
        422,
        "unusable_lesson",
        "; ".join(problems[:SHOWN]) + more,
        expected="a name, two classes or more, and photos of each of them",
    )


def archive(teacher: Teacher, name: str) -> bytes:
    """A ZIP archive of one folder with the files of an adapter.

    Raises:
        Problem: somebody has damaged them.
    """
    written = io.BytesIO()
    try:
        with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as packed:
            for file in FILES:
                packed.writestr(f"{name}/{file}", read_file(teacher.folder / name / file, TENSORS_LIMIT))
    except ArtifactError as error:
        raise from_error(500, "unusable_adapter", error) from error
    return written.getvalue()


def report(lesson: Lesson) -> Teaching:
    """What a client may know of it."""
    error = lesson.error
    return Teaching(
        id=lesson.id,
        name=lesson.name,
        state=lesson.state,
        method=lesson.method,
        photos=lesson.photos,
        held_back=holds_back(lesson.photos),
        epochs=lesson.epochs,
        curve=[
            EpochInfo(
                epoch=one.epoch,
                train_loss=one.train_loss,
                train_accuracy=one.train_accuracy,
                val_loss=one.val_loss,
                val_accuracy=one.val_accuracy,
            )
            for one in lesson.curve
        ],
        seconds=round(lesson.seconds, 3),
        error=None
        if error is None
        else FailureInfo(message=error["found"], expected=error["expected"] or None, remedy=error["remedy"] or None),
    )
