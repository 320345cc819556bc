"""The scaler on tables too large to hold twice, and products in bfloat16."""

import numpy as np
import pytest
import torch

from models.profiles import BATCH, ExpressionScaler
from runtime.device import bfloat16_products


@pytest.mark.parametrize("transform", ["log1p", "log_nonzero"])
def test_scaler_fitted_in_parts_is_that_of_the_whole_in_float64(tmp_path, transform):
    draw = np.random.default_rng(4)
    # Large means beside small deviations, where sums of squares in float32 would give nonsense.
    values = np.exp(14 + 1e-3 * draw.standard_normal((2 * BATCH + 77, 6))).astype(np.float32)
    values[:, 4] = 0
    values[:, 5] = 123.4
    values[::3, 3] = 0
    np.save(tmp_path / "values.npy", values)
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    scaler = ExpressionScaler.fit(mapped, transform)
    exact = values.astype(np.float64)
    logged = (
        np.log1p(exact)
        if transform == "log1p"
        else np.log(exact, out=np.zeros_like(exact), where=exact > 0)
    )
    np.testing.assert_allclose(scaler.mean, logged.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(scaler.std[:4], logged.std(axis=0)[:4], rtol=1e-3)
    assert scaler.std[4:].tolist() == [1, 1]


def test_scaler_is_fitted_on_the_rows_given():
    values = np.random.default_rng(5).gamma(2, 20, (20, 3)).astype(np.float32)
    rows = np.array([3, 1, 8, 8])
    some, same = ExpressionScaler.fit(values, rows=rows), ExpressionScaler.fit(values[rows])
    np.testing.assert_array_equal(some.mean, same.mean)
    np.testing.assert_array_equal(some.std, same.std)


def test_products_in_bfloat16_are_close_and_the_setting_is_put_back():
    one, other = torch.randn(64, 512), torch.randn(512, 64)
    exact, before = one @ other, torch.get_float32_matmul_precision()
    with bfloat16_products(True):
        assert torch.get_float32_matmul_precision() == "medium"
        product = one @ other
    assert torch.get_float32_matmul_precision() == before
    assert product.dtype == torch.float32
    # bfloat16 keeps 8 bits: each factor is off by at most 2**-9 of itself.
    assert (product - exact).abs().mean() < 2**-7 * exact.abs().mean()
    with bfloat16_products(False):
        assert torch.equal(one @ other, exact)
