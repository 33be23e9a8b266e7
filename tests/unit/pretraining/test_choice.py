"""The choice of the weights to keep."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from anomalib_msacl.backbone import create_backbone
from anomalib_msacl.backbone.encoder import Encoder
from anomalib_msacl.backbone.frozen import FrozenStages
from anomalib_msacl.lesions import FAMILIES, LesionMixture, LesionOutput
from anomalib_msacl.pretraining import questions as module
from anomalib_msacl.pretraining.patches import patch_features
from anomalib_msacl.pretraining.questions import Questions, Score, nearest, standard_error
from tests.conftest import make_recipe


class Stage(nn.Module):
    """A backbone of one stage whose features are the image, pooled, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.feature_info = [{"module": "stage", "num_chs": 3, "reduction": 4}]

    def forward_intermediates(self, images: Tensor, **options: object) -> list[Tensor]:
        return [self.factor * torch.nn.functional.avg_pool2d(images, 4)]


def encoder(factor: float) -> Encoder:
    return Encoder(Stage(factor), ["stage"], mean=(0, 0, 0), std=(1, 1, 1))


def smooth_images(number: int) -> Tensor:
    """Almost equal images: any lesion is far from every normal patch."""
    return 0.5 + 0.01 * torch.rand(number, 3, 64, 64, generator=torch.Generator().manual_seed(number))


def questions() -> Questions:
    return Questions(
        smooth_images(4), smooth_images(6), make_recipe(families=[name for name in FAMILIES if name != "blob"])
    )


def test_features_that_show_lesions_score_high_and_blind_ones_by_chance() -> None:
    seeing = questions().score(encoder(1.0), torch.device("cpu"))
    assert seeing.image_auroc > 0.95
    assert seeing.pixel_auroc > 0.95
    assert questions().score(encoder(0.0), torch.device("cpu"))[:2] == (0.5, 0.5)


def test_the_score_does_not_depend_on_the_scale_of_the_features() -> None:
    assert questions().score(encoder(1.0), torch.device("cpu"))[:2] == pytest.approx(
        questions().score(encoder(1000.0), torch.device("cpu"))[:2],
        abs=0.01,  # almost equal patches: the last digits of a distance decide
    )


def test_all_candidates_face_the_same_questions() -> None:
    first, second = questions(), questions()
    assert torch.equal(first.images, second.images)
    network = Encoder(create_backbone("test_resnet", "random")[0])
    one, other = (asked.score(network, torch.device("cpu")) for asked in (first, second))
    assert one[:2] == other[:2]
    assert torch.equal(one.distances, other.distances)


def test_the_questions_are_of_families_that_were_not_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def synthesize(mix: LesionMixture, images: Tensor, *_: object) -> LesionOutput:
        asked.extend(mix.names)
        return LesionOutput(images, torch.zeros_like(images[:, :1]), torch.ones(len(images)))

    monkeypatch.setattr(LesionMixture, "synthesize", synthesize)
    Questions(smooth_images(2), smooth_images(2), make_recipe(families=["medmix", "haze"]))
    assert set(asked) == set(FAMILIES) - {"medmix", "haze"}
    asked.clear()
    Questions(smooth_images(2), smooth_images(2), make_recipe(families=list(FAMILIES)))
    assert set(asked) == set(FAMILIES)


def test_scoring_leaves_training_mode_and_weights_alone() -> None:
    network = Encoder(create_backbone("test_resnet", "random")[0], train_batch_norm=True).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    questions().score(network, torch.device("cpu"))
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_features_that_are_not_finite_never_win() -> None:
    assert questions().score(encoder(float("nan")), torch.device("cpu")) == Score(0.0, 0.0)


def scored(normal: Tensor, lesions: Tensor) -> Score:
    distances = torch.cat([normal, lesions])
    labels = torch.cat([torch.zeros(len(normal)), torch.ones(len(lesions))])
    return Score(float(roc_auc_score(labels, distances)), 0.5, distances.repeat(2, 1))


def test_the_standard_error_is_that_of_the_difference_over_new_draws_of_images() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(images: int) -> tuple[Score, Score]:
        """Two candidates that agree on how hard an image is, the second a little better."""
        hard, noise = torch.randn(3, images, generator=generator), torch.randn(2, 3, images, generator=generator)
        first, second = (0.7 * hard + 0.7 * part for part in noise)
        return scored(first[0], first[1:].flatten() + 0.8), scored(second[0], second[1:].flatten() + 1.0)

    pairs = [draw(60) for _ in range(200)]
    truth = torch.tensor([one.image_auroc - other.image_auroc for one, other in pairs]).std().item()
    estimates = torch.tensor([standard_error(one, other) for one, other in pairs[:20]])
    assert estimates.mean().item() == pytest.approx(truth, rel=0.25)


def test_the_standard_error_is_that_of_a_plain_bootstrap() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(9, (2, 2, 36), generator=generator).double()  # with ties
    one, other = (Score(0.5, 0.5, part) for part in values)
    labels, generator = torch.tensor([0] * 12 + [1] * 24), torch.Generator().manual_seed(0)
    differences = []
    for _ in range(200):
        drawn = torch.randint(12, (12,), generator=generator)
        rows = torch.cat([drawn, drawn + 12, drawn + 24])
        areas = [[roc_auc_score(labels, distance[rows]) for distance in part] for part in values]
        differences.append(torch.tensor(areas).mean(dim=1).diff())
    assert standard_error(one, other) == pytest.approx(torch.cat(differences).std().item())


def test_there_is_no_error_between_equals_nor_without_distances() -> None:
    one = scored(torch.rand(20), torch.rand(40))
    assert standard_error(one, one) == 0
    assert standard_error(one, Score(0.0, 0.0)) == 0


def test_too_few_images_tell_nothing() -> None:
    one, other = scored(torch.tensor([0.1, 0.2]), torch.rand(4)), scored(torch.rand(2), torch.rand(4))
    assert standard_error(one, other) == float("inf")


def test_frozen_features_are_remembered_for_the_next_candidate_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Encoder(create_backbone("test_resnet", "random")[0], frozen_stride=4)
    asked, device = questions(), torch.device("cpu")
    whole = asked.score(network, device)
    ran: list[int] = []
    features = FrozenStages.features
    monkeypatch.setattr(FrozenStages, "features", lambda self, images: ran.append(1) or features(self, images))
    network.frozen = FrozenStages(network)
    ran.clear()
    first = asked.score(network, device)
    number = len(ran)
    assert number
    assert torch.allclose(first.distances, whole.distances, atol=1e-3)
    assert torch.equal(first.distances, asked.score(network, device).distances)
    assert len(ran) == number
    network.frozen = FrozenStages(network)
    ran.clear()
    asked.score(network, device)
    assert len(ran) == number


@pytest.mark.parametrize("rows", [7, 50, 1024])  # of a block: within an image, across chunks, and more than all
def test_features_of_one_chunk_are_held_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distances are those that the features of all images at once give, bit by bit."""
    monkeypatch.setattr(module, "_CHUNK", 4)
    monkeypatch.setattr(module, "_ROWS", rows)
    monkeypatch.setattr(module, "_BANK", 100)
    network, asked = Encoder(create_backbone("test_resnet", "random")[0]).eval(), questions()
    with torch.no_grad():
        chunks = [*torch.split(asked.bank, 4), *torch.split(asked.images, 4)]
        features = torch.cat([patch_features(network(chunk, pooled=False)[0]) for chunk in chunks]).movedim(1, -1)
    bank, others = features[:4].flatten(0, 2), features[4:]
    bank = bank[asked.order[: len(bank)].argsort()[:100]]
    parts = [nearest(part, bank) for part in torch.split(others.flatten(0, 2), rows)]
    expected = torch.cat(parts).reshape(len(others), -1)

    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watched(maps: Sequence[Tensor]) -> Tensor:
        alive.append(sum(found() is not None for found in made))
        found = patch_features(maps)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(module, "patch_features", watched)
    score = asked.score(network, torch.device("cpu"))
    assert len(alive) == 6
    assert max(alive) == 0
    assert torch.equal(score.distances, torch.stack([expected.amax(dim=1), expected.mean(dim=1)]))


def test_the_distance_to_the_nearest_is_that_of_a_loop() -> None:
    rows, bank = torch.randn(20, 5) + 100, torch.randn(30, 5) + 100
    expected = [min(float((row - other).norm()) for other in bank) for row in rows]
    assert nearest(rows, bank).tolist() == pytest.approx(expected, abs=1e-3)
