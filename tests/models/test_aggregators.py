import pytest
import torch

from models.aggregators import build_aggregator

NAMES = ["center", "mean", "max", "center3_mean", "center3_max", "attention_z", "planes"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def make(name, n_features=4):
    torch.manual_seed(0)
    aggregator = build_aggregator(name, n_features).eval()
    for parameter in aggregator.parameters():  # zeros at the start would hide a fault
        torch.nn.init.normal_(parameter, std=0.5)
    return aggregator


def nodules(n=5, n_slices=3, n_features=4):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(n, n_slices, n_features, generator=generator)
    position = torch.linspace(-7.5, 5.0, n_slices).expand(n, -1)
    return tokens, position, torch.ones(n, n_slices, dtype=torch.bool)


def test_values_known_on_paper():
    tokens = torch.tensor([[[1.0, 0.0], [2.0, 9.0], [4.0, 3.0], [8.0, 1.0], [16.0, 0.0]]])
    position = torch.tensor([[-5.0, -2.5, 0.5, 3.0, 5.5]])
    mask = torch.tensor([[True, True, True, True, True]])
    assert make("center", 2)(tokens, position, mask).tolist() == [[4.0, 3.0]]
    assert make("mean", 2)(tokens, position, mask)[0].tolist() == pytest.approx([31 / 5, 13 / 5])
    assert make("max", 2)(tokens, position, mask).tolist() == [[16.0, 9.0]]
    assert make("center3_mean", 2)(tokens, position, mask)[0].tolist() == pytest.approx([14 / 3, 13 / 3])
    assert make("center3_max", 2)(tokens, position, mask).tolist() == [[8.0, 9.0]]
    # Without the slice at 0.5 mm the nearest are those at -2.5, 3 and -5 mm.
    mask[0, 2] = False
    assert make("center", 2)(tokens, position, mask).tolist() == [[2.0, 9.0]]
    assert make("center3_mean", 2)(tokens, position, mask)[0].tolist() == pytest.approx([11 / 3, 10 / 3])
    mask[0, 1:4] = False
    assert make("max", 2)(tokens, position, mask).tolist() == [[16.0, 0.0]]
    assert make("center3_max", 2)(tokens, position, mask).tolist() == [[16.0, 0.0]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "planes"])
def test_padding_changes_nothing_whatever_it_holds(name, device):
    aggregator = make(name).to(device)
    tokens, position, mask = (part.to(device) for part in nodules(n_slices=4))
    expected = aggregator(tokens, position, mask)
    for filler in (0.0, 1e6, torch.nan, torch.inf):
        padded = torch.cat([tokens, torch.full((5, 3, 4), filler, device=device)], dim=1)
        places = torch.cat([position, torch.zeros(5, 3, device=device)], dim=1)
        real = torch.cat([mask, torch.zeros(5, 3, dtype=torch.bool, device=device)], dim=1)
        torch.testing.assert_close(aggregator(padded, places, real), expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "planes"])
def test_the_order_in_which_slices_are_listed_does_not_matter_only_their_place(name):
    aggregator = make(name)
    tokens, position, mask = nodules(n_slices=6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        aggregator(tokens[:, order], position[:, order], mask[:, order]), aggregator(tokens, position, mask)
    )


def test_attention_tells_a_sign_above_from_the_same_sign_below():
    aggregator = make("attention_z")
    tokens, position, mask = nodules(n_slices=5)
    assert not torch.allclose(
        aggregator(tokens, position, mask), aggregator(tokens, -position, mask), atol=1e-2
    )


def test_attention_measures_millimeters_not_indices():
    aggregator = make("attention_z")
    tokens, position, mask = nodules(n_slices=5)
    assert not torch.allclose(
        aggregator(tokens, position, mask), aggregator(tokens, 2 * position, mask), atol=1e-2
    )


def test_planes_are_three_and_each_has_its_own_meaning():
    aggregator = make("planes")
    tokens, position, mask = nodules()
    swapped = tokens[:, [1, 0, 2]]
    assert not torch.allclose(
        aggregator(tokens, position, mask), aggregator(swapped, position, mask), atol=1e-3
    )
    torch.testing.assert_close(aggregator(tokens, position, mask), aggregator(tokens, position + 3, mask))
    with pytest.raises(ValueError, match="planes are three"):
        aggregator(*nodules(n_slices=4))


@pytest.mark.parametrize("name", NAMES)
def test_every_aggregator_passes_gradients_to_its_tokens(name):
    tokens, position, mask = nodules()
    tokens.requires_grad_()
    make(name)(tokens, position, mask).sum().backward()
    assert tokens.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["center", "mean", "max", "center3_mean", "center3_max"])
def test_a_nodule_without_slices_is_refused(name):
    tokens, position, mask = nodules()
    mask[2] = False
    with pytest.raises(ValueError, match="1 of 5 nodules have no real slice"):
        make(name)(tokens, position, mask)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="attention_z"):
        build_aggregator("attention", 4)
