import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.errors import ConfigError
from train.architectures import Architecture, _SameConv2d, _SameConvTranspose2d
from train.models import LOGVAR_RANGE, FaceVAE, parameter_count
from train.pretrained import architecture_of


def make(kind: str, size: int) -> FaceVAE:
    torch.manual_seed(0)
    return FaceVAE(Architecture.of(kind, size, None, None, None))


@pytest.fixture(scope="module")
def keras() -> FaceVAE:
    return make("keras", 128)


def stage_shapes(layers: nn.Module, values: torch.Tensor) -> list[tuple[int, ...]]:
    """Shapes [C, H, W] after each convolution."""
    shapes = []
    assert isinstance(layers, nn.Sequential)
    for layer in layers:
        values = layer(values)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            shapes.append(tuple(values.shape[1:]))
    return shapes


def test_the_keras_port_has_as_many_numbers_as_keras_counts(keras: FaceVAE) -> None:
    encoder, decoder = parameter_count(keras.encoder), parameter_count(keras.decoder)
    # Two dense layers of 4096 x 200 + 200; four convolutions; four BatchNorms of four numbers a channel.
    assert encoder == 2 * (4096 * 200 + 200) + 9 * (3 * 32 + 32 * 64 + 2 * 64 * 64) + 224 + 4 * 224
    assert encoder + decoder == parameter_count(keras) == 2_650_067


def test_the_keras_port_has_the_shapes_of_every_stage(keras: FaceVAE) -> None:
    assert stage_shapes(keras.encoder, torch.rand(2, 3, 128, 128)) == [
        (32, 64, 64),
        (64, 32, 32),
        (64, 16, 16),
        (64, 8, 8),
    ]
    assert stage_shapes(keras.decoder, torch.rand(2, 200)) == [(64, 16, 16), (64, 32, 32), (32, 64, 64), (3, 128, 128)]


def same_convolution(image: NDArray[np.float32], kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """TensorFlow's rule, one input and one output channel, stride 2: padding in total 1, the smaller half before."""
    out = -(-len(image) // 2)
    total = max((out - 1) * 2 + 3 - len(image), 0)
    before = total // 2
    padded = np.pad(image, ((before, total - before),) * 2)
    return np.array(
        [[(padded[2 * y : 2 * y + 3, 2 * x : 2 * x + 3] * kernel).sum() for x in range(out)] for y in range(out)]
    )


def test_same_convolution_pads_as_tensorflow_does() -> None:
    rng = np.random.default_rng(0)
    image, kernel = rng.normal(size=(6, 6)), rng.normal(size=(3, 3))
    layer = _SameConv2d(1, 1, 3, stride=2, bias=False).double()
    layer.weight.data[0, 0] = torch.from_numpy(kernel)
    found = layer(torch.from_numpy(image)[None, None])[0, 0].detach().numpy()
    np.testing.assert_allclose(found, same_convolution(image, kernel), rtol=1e-12)


def test_transposed_same_convolution_is_the_adjoint_of_the_convolution() -> None:
    """TensorFlow defines it as the gradient: here as the transposed matrix of the numpy convolution above."""
    rng = np.random.default_rng(1)
    small, kernel = rng.normal(size=(4, 4)), rng.normal(size=(3, 3))
    matrix = np.stack([same_convolution(basis.reshape(8, 8), kernel).ravel() for basis in np.eye(64)], axis=1)
    layer = _SameConvTranspose2d(1, 1, 3, stride=2, bias=False).double()
    layer.weight.data[0, 0] = torch.from_numpy(kernel)
    found = layer(torch.from_numpy(small)[None, None])[0, 0].detach().numpy()
    np.testing.assert_allclose(found, (matrix.T @ small.ravel()).reshape(8, 8), rtol=1e-12)


def test_batchnorm_activation_and_dropout_are_kerass(keras: FaceVAE) -> None:
    norms = [layer for layer in keras.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 7
    assert {norm.eps for norm in norms} == {1e-3}
    norm, images = norms[0].train(), torch.rand(8, 32, 4, 4)
    old = norm.running_mean.clone()  # type: ignore[union-attr]
    norm(images)
    torch.testing.assert_close(norm.running_mean, 0.99 * old + 0.01 * images.mean((0, 2, 3)))
    slopes = [layer for layer in keras.modules() if isinstance(layer, nn.LeakyReLU)]
    assert [layer.negative_slope for layer in slopes] == [0.3] * 7
    assert [layer.p for layer in keras.modules() if isinstance(layer, nn.Dropout)] == [0.25] * 7


def test_every_keras_block_is_norm_activation_dropout_and_the_last_has_none(keras: FaceVAE) -> None:
    block = [nn.BatchNorm2d, nn.LeakyReLU, nn.Dropout]
    assert isinstance(keras.encoder, nn.Sequential)
    assert isinstance(keras.decoder, nn.Sequential)
    down = [type(layer) for layer in keras.encoder]
    assert down[:-2] == [_SameConv2d, *block] * 4
    up = [type(layer) for layer in keras.decoder]
    # The dense layer has no activation: the first convolution follows at once.
    assert up[0] is nn.Linear
    assert up[2:] == [*[_SameConvTranspose2d, *block] * 3, _SameConvTranspose2d]


def test_keras_weights_start_as_glorots(keras: FaceVAE) -> None:
    assert isinstance(keras.encoder, nn.Sequential)
    head = keras.encoder[-1]
    layers = [layer for layer in keras.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    weights = [(layer.weight, 9 * (layer.in_channels + layer.out_channels)) for layer in layers]
    weights += [(half, 4096 + 200) for half in head.weight.chunk(2)]  # type: ignore[union-attr, operator]
    weights += [(keras.decoder[0].weight, 4096 + 200)]  # type: ignore[index, union-attr]
    assert len(weights) == 11
    for weight, fans in weights:
        limit = math.sqrt(6 / fans)
        assert weight.abs().max() <= limit
        assert float(weight.detach().std()) == pytest.approx(limit / math.sqrt(3), rel=0.1)
    assert all(layer.bias.abs().max() == 0 for layer in layers)  # type: ignore[union-attr]


def test_keras_flatten_and_reshape_undo_each_other(keras: FaceVAE) -> None:
    assert isinstance(keras.encoder, nn.Sequential)
    assert isinstance(keras.decoder, nn.Sequential)
    images = torch.rand(2, 64, 8, 8)
    flat = keras.encoder[-2](images)
    assert flat[0, :64].equal(images[0, :, 0, 0])
    assert keras.decoder[1](flat).equal(images)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("kind", ["conv", "residual", "keras"])
def test_ranges_and_shapes_of_a_pass(kind: str, size: int) -> None:
    model = make(kind, size)
    mean, logvar = model.encode(torch.rand(2, 3, size, size))
    assert mean.shape == logvar.shape == (2, model.latent)
    output = model(torch.rand(2, 3, size, size), torch.randn(2, model.latent))
    assert output.images.shape == (2, 3, size, size)
    assert output.images.min() >= 0
    assert output.images.max() <= 1
    assert output.images.dtype == output.mean.dtype == output.logvar.dtype == torch.float32


def test_the_sample_is_mean_plus_std_times_noise() -> None:
    model = make("conv", 32).eval()
    images, noise = torch.rand(2, 3, 32, 32), torch.randn(2, model.latent)
    mean, logvar = model.encode(images)
    torch.testing.assert_close(model(images, noise).images, model.decode(mean + logvar.exp().sqrt() * noise))


def test_logvar_is_clamped() -> None:
    model = make("conv", 32)
    head = [layer for layer in model.encoder.modules() if isinstance(layer, nn.Linear)][-1]
    head.bias.data[model.latent :] = torch.tensor([1e9, -1e9] * (model.latent // 2))
    _, logvar = (values.detach() for values in model.encode(torch.rand(1, 3, 32, 32)))
    assert (float(logvar.min()), float(logvar.max())) == LOGVAR_RANGE


def test_only_models_with_dropout_draw_for_themselves(keras: FaceVAE) -> None:
    assert keras.draws_for_itself
    assert not make("conv", 32).draws_for_itself


@pytest.mark.parametrize("size", [16, 40, 100, 178])
@pytest.mark.parametrize("kind", ["conv", "residual", "keras"])
def test_a_size_that_the_model_cannot_take_is_an_error_with_a_remedy(kind: str, size: int) -> None:
    with pytest.raises(ConfigError, match=f"got {size}. Make the shards with --size 64"):
        Architecture(kind, size, 8, (8, 8, 8, 8))


@pytest.mark.parametrize("kind", ["conv", "residual", "keras"])
def test_a_model_is_built_again_from_its_description(kind: str) -> None:
    model = make(kind, 64)
    again = FaceVAE(architecture_of(model.describe()))
    assert again.architecture == model.architecture
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(("size", "widths", "latent", "millions"), [
    (64, (64, 128, 256, 256), 128, (8.5, 10.5)), (128, (48, 96, 192, 256, 256), 256, (18, 21)),
])  # fmt: skip
def test_the_residual_model_has_its_size(
    size: int, widths: tuple[int, ...], latent: int, millions: tuple[float, float]
) -> None:
    model = make("residual", size)
    assert (model.architecture.widths, model.latent) == (widths, latent)
    assert millions[0] <= parameter_count(model) / 1e6 <= millions[1]


def test_widths_and_depth_of_the_residual_model_are_free() -> None:
    model = FaceVAE(Architecture.of("residual", 32, 7, (4, 6, 10), 3))
    assert len([layer for layer in model.encoder.modules() if type(layer).__name__ == "_Residual"]) == 9
    assert model(torch.rand(2, 3, 32, 32), torch.randn(2, 7)).images.shape == (2, 3, 32, 32)


@pytest.mark.parametrize(("width", "groups"), [(8, 1), (24, 1), (32, 2), (40, 2), (48, 3), (100, 5), (256, 16)])
def test_groups_have_sixteen_channels_or_the_next_number_that_divides_them(width: int, groups: int) -> None:
    model = FaceVAE(Architecture.of("conv", 32, 4, (width, width), None))
    norms = [layer for layer in model.modules() if isinstance(layer, nn.GroupNorm)]
    assert norms
    assert {norm.num_groups for norm in norms} == {groups}


def test_a_residual_model_begins_calmly() -> None:
    model, images = make("residual", 64), torch.rand(4, 3, 64, 64)
    output = model(images, torch.randn(4, model.latent))
    assert abs(output.images - 0.5).max() < 0.1
    assert output.mean.abs().max() < 0.5
    assert output.logvar.abs().max() < 0.5
    output.images.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(model.parameters()))


def test_a_residual_block_begins_as_the_identity() -> None:
    block = next(layer for layer in make("residual", 32).modules() if type(layer).__name__ == "_Residual")
    values = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(block(values), values)
