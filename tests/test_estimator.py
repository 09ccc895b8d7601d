"""ViaPTClassifier: scikit-learn's own checks, its tools, and the images that it takes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import check_is_fitted, validate_data

import viapt
from artifact_cases import tiny
from cli_cases import write_backbone
from viapt.data import eval_transform
from viapt.errors import ConfigError, DataError
from viapt.estimator import InputError, ViaPTClassifier

FOLDER = tempfile.TemporaryDirectory()
BACKBONE = write_backbone(Path(FOLDER.name))  # a name, as scikit-learn compares parameters by their pickles
QUICK: dict[str, Any] = {"method": "linear", "epochs": 6, "lr": 0.1, "random_state": 0}


def small(backbone: Any = BACKBONE, **arguments: Any) -> ViaPTClassifier:
    return ViaPTClassifier(backbone, **QUICK | arguments)


def photos(count: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise around red or blue, (count, 20, 24, 3) uint8, and the colours' names."""
    rng = np.random.default_rng(seed)
    names = np.array(["red", "blue"])[np.arange(count) % 2]
    colours = {"red": (220, 30, 30), "blue": (30, 30, 220)}
    pixels = [np.array(colours[name]) + rng.normal(0, 30, (20, 24, 3)) for name in names]
    return np.clip(np.stack(pixels), 0, 255).astype(np.uint8), names


class OnRows(ViaPTClassifier):
    """Of tables, which is all that scikit-learn's checks have: each row is drawn as an image of vertical bars."""

    def fit(self, X: Any, y: Any) -> OnRows:
        X = validate_data(self, X)
        self.low_, self.high_ = X.min(), X.max()
        super().fit(self.drawn(X), y)
        return self

    def predict_proba(self, X: Any) -> Any:
        check_is_fitted(self)
        return super().predict_proba(self.drawn(validate_data(self, X, reset=False)))

    def drawn(self, X: np.ndarray) -> np.ndarray:
        grey = np.clip((X - self.low_) / max(self.high_ - self.low_, 1e-9), 0, 1)
        return np.repeat(grey[:, None, :, None], 4, axis=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


WITHOUT_TYPE_CHECKS = "check_do_not_raise_errors_in_init_or_set_params"  # it gives arguments of wrong types
ROWS = OnRows(BACKBONE, **QUICK)
CHECKS = [check for _, check in estimator_checks_generator(ROWS)]


def check_name(number: int) -> str:
    check = CHECKS[number]
    return getattr(check, "func", check).__name__


def numbered(number: int) -> Any:
    """A check that runs among those without the shape-checking import hook, where it has to."""
    name = check_name(number)
    marks = [pytest.mark.compiled] if name == WITHOUT_TYPE_CHECKS else []
    return pytest.param(number, id=f"{number}-{name}", marks=marks)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
@pytest.mark.parametrize("number", [numbered(number) for number in range(len(CHECKS))])
def test_the_checks_of_scikit_learn(number: int) -> None:
    CHECKS[number](clone(ROWS))


def test_all_kinds_of_images_give_the_same_answers(tmp_path: Path) -> None:
    X, y = photos()
    model = small(method="viapt", method_options={"num_prompts": 4, "num_instance_prompts": 2, "kept_dim": 8}).fit(X, y)
    paths = [tmp_path / f"{number}.png" for number in range(len(X))]
    for path, pixels in zip(paths, X, strict=True):
        Image.fromarray(pixels).save(path)
    expected = model.predict_proba(X)
    for images in (list(X), [Image.fromarray(pixels) for pixels in X], paths, np.array([str(p) for p in paths])):
        np.testing.assert_array_equal(model.predict_proba(images), expected)
        again = clone(model).fit(images, y)
        np.testing.assert_array_equal(again.predict_proba(X), expected)
    assert list(model.classes_) == ["blue", "red"] and model.score(X, y) > 0.9
    np.testing.assert_array_equal(model.model_.predict(X).labels, model.predict(X))


def test_the_training_is_that_of_fit() -> None:
    """The same weights as by the functions of viapt, called by hand."""
    X, y = photos()
    model = small(random_state=5, method="vpt-deep", method_options={"num_prompts": 2}).fit(X, y)
    twin = viapt.create_model(BACKBONE, "vpt-deep", classes=["blue", "red"], seed=model.seed_, num_prompts=2)
    transform = eval_transform(twin.backbone.preprocessing)
    data = [(transform(Image.fromarray(pixels)), int(name == "red")) for pixels, name in zip(X, y, strict=True)]
    viapt.fit(twin, data, epochs=6, lr=0.1, seed=model.seed_, progress=False)
    for name, tensor in twin.learnable().items():
        assert tensor.equal(model.model_.learnable()[name]), name
    assert small(random_state=np.random.RandomState(5)).fit(X, y).seed_ == model.seed_
    assert small(random_state=5, augmentation="strong").fit(X, y).predict_proba(X).tolist() != (
        small(random_state=5).fit(X, y).predict_proba(X).tolist()
    )
    assert small(random_state=6).fit(X, y).seed_ != model.seed_


def test_pipeline_search_and_cross_validation(tmp_path: Path) -> None:
    X, y = photos()
    paths = np.array([str(tmp_path / f"{number}.png") for number in range(len(X))])
    for path, pixels in zip(paths, X, strict=True):
        Image.fromarray(pixels).save(path)
    pipeline = Pipeline([("mirror", FunctionTransformer(lambda images: images[:, :, ::-1])), ("classify", small())])
    assert pipeline.fit(X, y).score(X, y) > 0.9
    search = GridSearchCV(pipeline, {"classify__lr": [1e-7, 0.1]}, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_ == {"classify__lr": 0.1} and search.best_score_ > 0.9
    assert cross_val_score(small(), paths, y, cv=2, error_score="raise").mean() > 0.9
    integers = np.where(y == "red", 7, -3)
    assert set(small().fit(list(X), integers).predict(X[:4])) == {7, -3}


PREDICT = "import joblib, sys, torch; torch.set_num_threads(1); m, X, f = joblib.load(sys.argv[1]); \
joblib.dump((m.predict_proba(X), f.predict_proba(X)), sys.argv[2])"


def test_the_documents_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "ecosystem.md").read_text(encoding="utf-8")
    block = text.partition("```python\n")[2].partition("```")[0]
    assert "packaged:vits14" in block
    images, labels = photos(12)
    block = block.replace("packaged:vits14", BACKBONE).replace("epochs=5", 'epochs=1, method_options={"kept_dim": 8}')
    exec(compile(block, "ecosystem.md", "exec"), {"images": images, "labels": labels})
    assert "{'lr': 0.00" in capsys.readouterr().out


def test_joblib_in_another_process(tmp_path: Path) -> None:
    X, y = photos()
    named, given = (
        small().fit(X, y),
        small(backbone=tiny(), policy="multi", method="viapt", epochs=1)
        .set_params(method_options={"num_prompts": 4, "num_instance_prompts": 2, "kept_dim": 8})
        .fit(X, y),
    )
    joblib.dump((named, X, given), tmp_path / "models")
    subprocess.run([sys.executable, "-c", PREDICT, tmp_path / "models", tmp_path / "answers"], check=True)
    for model, found in zip((named, given), joblib.load(tmp_path / "answers"), strict=True):
        np.testing.assert_array_equal(found, model.predict_proba(X))


def test_a_module_stays_as_it_is() -> None:
    X, y = photos()
    module = tiny()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    estimator = small(backbone=module).fit(X, y)
    assert estimator.backbone is module
    assert all(tensor.equal(before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 5)), r"shape \(4, 5\)"),
        (np.zeros((30, 40, 3), np.uint8), r"shape \(30, 40, 3\)"),
        ("photo.jpg", "single str.*list"),
        ([1, 2], r"Image 0 \(counting from 0\) is a int"),
        (7, "X is a int"),
        ([], "0 images"),
    ],
)
def test_what_are_no_images_is_refused(images: Any, message: str) -> None:
    X, y = photos()
    with pytest.raises(InputError, match=message):
        small().fit(images, y)
    with pytest.raises(ValueError, match=message):
        small(epochs=1).fit(X, y).predict(images)


def test_other_mistakes_are_refused() -> None:
    X, y = photos()
    with pytest.raises(InputError, match="24 images and 23 labels"):
        small().fit(X, y[1:])
    with pytest.raises(InputError, match="one class, 'red'"):
        small().fit(X[::2], y[::2])
    with pytest.raises(InputError, match="requires y"):
        small().fit(X, None)
    with pytest.raises(DataError, match="nowhere"):
        small().fit(["nowhere.png", *X[1:]], y)
    with pytest.raises(ConfigError, match="epochs = 0"):
        small(epochs=0).fit(X, y)
    with pytest.raises(ConfigError, match="num_promts"):
        small(method_options={"num_promts": 3}).fit(X, y)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; sys.modules['sklearn.base'] = None; import viapt; viapt.ViaPTClassifier"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "scikit-learn is not installed" in result.stderr and "viapt[sklearn]" in result.stderr
