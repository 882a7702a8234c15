"""The filters with NVFlare's own DXO, Shareable, FLContext and configuration reader."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import stat
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.filter import (
    ContentBlockedException,
    FilterChainType,
    FilterContextKey,
    FilterSource,
)
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.apis.utils.task_utils import apply_filters
from nvflare.apis.workspace import Workspace
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AlgorithmConstants, AppConstants
from nvflare.fuel.utils import fobs
from nvflare.job_config.fed_job_config import FedJobConfig
from nvflare.private.fed.app.fl_conf import create_privacy_manager
from nvflare.private.fed.utils.app_deployer import AppDeployer
from nvflare.private.fed.utils.fed_utils import (
    create_job_processing_context_properties,
    nvflare_fobs_initialize,
)
from nvflare.private.privacy_manager import PrivacyService
from torch import Tensor, nn

from gradguard import (
    DPSGD,
    AddGaussian,
    ClipByGlobalNorm,
    Defense,
    ErrorFeedback,
    GradTransform,
    Identity,
    KeepRandomK,
    KeepTopK,
    Quantize,
    Sign,
    Ternary,
    UpdateGuard,
    Withhold,
    chain,
    wire,
)
from gradguard.dp import ClientDP
from gradguard.dp.client_level import PrivateUpdateGuard
from gradguard.integrations.nvflare import DecodingFilter, GuardFilter
from gradguard.integrations.nvflare.dxo_arrays import WIRE_KEY
from gradguard.integrations.nvflare.site_files import alone
from gradguard.integrations.nvflare.site_ledger import book, read_ledger
from gradguard.integrations.nvflare.site_memory import place, recall
from gradguard.integrations.update_settings import seed_of
from tests.integrations.nvflare_site import Digits

JOB, SITE = "00000000-0000-0000-0000-000000000001", "site-1"
TOP_K = ErrorFeedback(KeepTopK(0.25))
EXAMPLE = Path(__file__).parents[2] / "examples" / "nvflare"


class Tied(nn.Module):
    """One weight under two names, statistics and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight


class Letters(str):
    """Text with room for more."""


class Fraction64(float):
    """A number with room for more."""


class Whole(int):
    """A number with room for more."""


class Table(dict[str, Any]):
    """A dictionary with room for more."""


class Row(list[Any]):
    """A list with room for more."""


class View(np.ndarray):
    """An array with room for more."""


class Answer(Shareable):  # type: ignore[misc]
    """A result with room for more."""


def carriers(raw: np.ndarray) -> list[Any]:
    """Numbers and text that carry ``raw`` with them."""
    view = np.zeros(1).view(View)
    found: list[Any] = [Letters("x"), Fraction64(0.5), Whole(3), Table(a=1), Row([1]), view]
    for one in found:
        one.raw = raw
    return found


def text(transform: GradTransform | list[GradTransform]) -> str:
    return Defense("tested", transform=transform).to_json()


def context(folder: Path, *, site: str = SITE, job: str = JOB) -> FLContext:
    """As NVFlare's runner makes it, on a site whose workspace is ``folder``."""
    for made in ("startup", "local"):
        (folder / made).mkdir(parents=True, exist_ok=True)
    found = FLContext()
    found.set_prop(ReservedKey.RUN_NUM, job, private=False)
    found.set_prop(ReservedKey.IDENTITY_NAME, site, private=False)
    found.set_prop(FLContextKey.WORKSPACE_OBJECT, Workspace(str(folder), site), private=True)
    return found


def update(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.normal(size=(4, 5)).astype(np.float32),
        "bias": rng.normal(size=4).astype(np.float32),
        "scale": np.array(rng.normal(), dtype=np.float32),
        "steps": np.array(0),
    }


def result(
    data: dict[str, Any], *, kind: str = DataKind.WEIGHT_DIFF, meta: dict[str, Any] | None = None
) -> Shareable:
    return DXO(kind, data=data, meta=meta).to_shareable()


def begun(data: dict[str, Any] | None = None) -> Shareable:
    """A result of a job's first round."""
    shareable = result(update() if data is None else data)
    shareable.set_header(AppConstants.CURRENT_ROUND, 0)
    return shareable


def tensors(data: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(np.array(value)) for name, value in data.items()}


def zeros(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in entries.items()}


def sent(guard: GuardFilter, shareable: Shareable, fl_ctx: FLContext) -> DXO:
    return from_shareable(guard.process(shareable, fl_ctx))


def assert_bitwise(found: dict[str, Any], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert np.asarray(found[name]).dtype == tensor.numpy().dtype
        assert np.asarray(found[name]).tobytes() == tensor.numpy().tobytes(), name


def assert_blocked(guard: GuardFilter, shareable: Shareable, fl_ctx: FLContext, match: str) -> None:
    with pytest.raises(ContentBlockedException, match=match):
        guard.process(shareable, fl_ctx)


class TestTheUpdateIsBitwiseThatOfUpdateGuard:
    @pytest.mark.parametrize(
        "transform",
        [
            Identity(),
            TOP_K,
            ErrorFeedback(chain(KeepRandomK(0.5), Quantize(4))),
            chain(AddGaussian(0.1), Sign()),
            Ternary(),
            Withhold("bias"),
        ],
        ids=repr,
    )
    def test_over_rounds_by_a_new_filter_in_every_round(
        self, transform: GradTransform, tmp_path: Path
    ) -> None:
        guard = UpdateGuard(Defense("tested", transform=transform).chain, tensors(update()))
        guard.reset(seed_of(3, SITE))
        for number in range(3):
            # As the simulator does, where it makes a process for every task.
            one = GuardFilter(text(transform), simulation_seed=3)
            raw = tensors(update(number))
            expected = guard.protect(zeros(raw), raw)
            assert_bitwise(sent(one, result(update(number)), context(tmp_path)).data, expected)

    def test_with_client_level_dp(self, tmp_path: Path) -> None:
        raw = tensors(update())
        plain = PrivateUpdateGuard(raw, ClientDP(2.0, 0.5), after=chain(Sign()))
        plain.reset(seed_of(3, SITE))
        guard = GuardFilter(
            text(Sign()), noise_multiplier=2.0, max_update_norm=0.5, simulation_seed=3
        )
        found = sent(guard, begun(), context(tmp_path))
        assert_bitwise(found.data, plain.protect(zeros(raw), raw))
        assert found.meta["gradguard.epsilon"] == np.inf  # its noise is known

    def test_one_filter_keeps_the_memory_of_every_job_and_site_apart(self, tmp_path: Path) -> None:
        one = GuardFilter(text(TOP_K))
        for number in range(3):
            for site in ("site-1", "site-2"):
                for job in (JOB, "00000000-0000-0000-0000-000000000002"):
                    fl_ctx = context(tmp_path / site, site=site, job=job)
                    found = sent(one, result(update(number)), fl_ctx).data
                    if (site, job) == (SITE, JOB):
                        first = found
                    for name, array in first.items():
                        np.testing.assert_array_equal(found[name], array)

    def test_counters_that_aggregation_has_made_floats_stay_counters(self, tmp_path: Path) -> None:
        """As of the second round: NVFlare averages counters, and subtracts the averages."""
        guard = UpdateGuard(Defense("tested", transform=TOP_K).chain, tensors(update()))
        one = GuardFilter(text(TOP_K))
        for number, steps in enumerate((np.array(4), np.array(3.5), np.array(4.0))):
            raw = tensors({**update(number), "steps": np.array(4)})
            found = sent(one, result({**update(number), "steps": steps}), context(tmp_path)).data
            assert_bitwise(found, guard.protect(zeros(raw), raw))
            assert (found["steps"].dtype, found["steps"]) == (np.int64, 0)
        lost = {**update(), "steps": np.array(np.nan)}
        assert_blocked(one, result(lost), context(tmp_path), "'steps' contains NaN")

    def test_the_counters_of_batch_norm_are_none_of_the_norm(self, tmp_path: Path) -> None:
        data = {"weight": np.ones(4, np.float32), "norm.num_batches_tracked": np.array(1e6)}
        found = sent(GuardFilter(text(ClipByGlobalNorm(2.0))), result(data), context(tmp_path)).data
        np.testing.assert_array_equal(found["weight"], 1.0)
        assert found["norm.num_batches_tracked"] == 0

    def test_sites_that_share_a_seed_do_not_share_noise(self, tmp_path: Path) -> None:
        guard = GuardFilter(text(AddGaussian(1.0)), simulation_seed=3)
        one, other = (
            sent(guard, result(update()), context(tmp_path / site, site=site)).data["weight"]
            for site in ("site-1", "site-2")
        )
        assert not np.any(one == other)

    def test_torch_tensors_stay_torch_tensors(self, tmp_path: Path) -> None:
        found = sent(GuardFilter(text(TOP_K)), result(dict(tensors(update()))), context(tmp_path))
        guard = UpdateGuard(TOP_K, tensors(update()))
        raw = tensors(update())
        for name, tensor in guard.protect(zeros(raw), raw).items():
            assert torch.equal(found.data[name], tensor)


class TestNothingLeavesUndefended:
    @pytest.mark.parametrize(
        "kind",
        [kind for kind in DataKind if kind not in (DataKind.WEIGHT_DIFF, DataKind.METRICS)],
    )
    def test_results_of_other_kinds_are_blocked(self, kind: str, tmp_path: Path) -> None:
        for name in (kind, getattr(kind, "value", kind)):
            shareable = result(update(), kind=name)
            assert_blocked(GuardFilter(text(TOP_K)), shareable, context(tmp_path), "WEIGHT_DIFF")

    def test_a_collection_is_blocked_whatever_is_in_it(self, tmp_path: Path) -> None:
        inner = DXO(DataKind.WEIGHT_DIFF, data=update())
        shareable = result({"a": inner}, kind=DataKind.COLLECTION)
        assert_blocked(GuardFilter(text(TOP_K)), shareable, context(tmp_path), "COLLECTION")

    def test_a_result_without_a_dxo_is_blocked(self, tmp_path: Path) -> None:
        plain = Shareable({"weights": update()})
        assert_blocked(GuardFilter(text(TOP_K)), plain, context(tmp_path), "'weights'")
        empty = make_reply(ReturnCode.OK)  # as of swarm learning, whose updates pass by no filter
        assert_blocked(GuardFilter(text(TOP_K)), empty, context(tmp_path), "not a valid DXO")

    @pytest.mark.parametrize("content", [None, [], {}, {"kind": "WEIGHT_DIFF"}, b"x"])
    def test_a_result_with_a_broken_dxo_is_blocked(self, content: object, tmp_path: Path) -> None:
        shareable = result(update())
        shareable["DXO"] = content
        assert_blocked(GuardFilter(text(TOP_K)), shareable, context(tmp_path), "sent nothing")

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_nan_and_infinity_are_blocked(self, bad: float, tmp_path: Path) -> None:
        for transform in (TOP_K, Identity()):
            data = update()
            data["bias"][2] = bad
            guard = GuardFilter(text(transform))
            assert_blocked(guard, result(data), context(tmp_path), r"'bias' contains NaN")

    @pytest.mark.parametrize(
        "value",
        [b"ciphertext", "text", 1.0, [1.0, 2.0], None, np.array(["a"]), np.array([1j])],
        ids=repr,
    )
    def test_what_is_no_array_of_numbers_is_blocked(self, value: object, tmp_path: Path) -> None:
        data = {**update(), "bias": value}
        assert_blocked(GuardFilter(text(TOP_K)), result(data), context(tmp_path), "'bias'")

    def test_an_update_without_parameters_is_blocked(self, tmp_path: Path) -> None:
        guard, fl_ctx = GuardFilter(text(TOP_K)), context(tmp_path)
        assert_blocked(guard, result({"steps": np.array([3])}), fl_ctx, "no floating-point")
        assert_blocked(guard, result({}), fl_ctx, "sent nothing")

    def test_names_that_come_and_go_are_blocked(self, tmp_path: Path) -> None:
        guard, fl_ctx = GuardFilter(text(TOP_K)), context(tmp_path)
        sent(guard, result(update()), fl_ctx)
        fewer = {name: array for name, array in update().items() if name != "bias"}
        assert_blocked(guard, result(fewer), fl_ctx, "sent nothing")
        wider = {**update(), "bias": np.zeros(5, dtype=np.float32)}
        assert_blocked(guard, result(wider), fl_ctx, "shape")

    def test_an_array_beside_the_update_is_blocked(self, tmp_path: Path) -> None:
        guard, fl_ctx = GuardFilter(text(TOP_K)), context(tmp_path)
        control = {AlgorithmConstants.SCAFFOLD_CTRL_DIFF: update()}
        assert_blocked(guard, result(update(), meta=control), fl_ctx, "array of 20 numbers")
        numbers = [torch.zeros(2), 1 << 100, Fraction(1, 3), np.array([b"x"]), np.array([None])]
        texts = [b"x", np.bytes_(b"x"), "x" * 200_000, ["x" * 999] * 999]
        for hidden in [*numbers, *texts, object(), list(range(2000))]:
            for found in ({"deep": [{"er": hidden}]}, {"metrics": hidden}):
                shareable = result(update(), meta=found)
                assert_blocked(guard, shareable, fl_ctx, "the meta data of the result holds")
        shareable = result(update())
        shareable.set_header("gradient", np.zeros(3))
        assert_blocked(guard, shareable, fl_ctx, "a header of the result holds")
        shareable = result(update())
        shareable["beside"] = update()
        assert_blocked(guard, shareable, fl_ctx, "'beside'")

    def test_what_leaves_carries_no_attribute_of_what_came(self, tmp_path: Path) -> None:
        """NVFlare sends the whole ``__dict__`` of a float of a class of its own."""
        raw = np.random.default_rng(0).normal(size=1000)
        nvflare_fobs_initialize()
        guard, fl_ctx = GuardFilter(text(TOP_K)), context(tmp_path)
        bias = nn.Linear(1, 1).bias
        bias.raw = raw  # type: ignore[attr-defined]
        for carrier in (*carriers(raw), bias):
            for hidden in (carrier, [carrier], {"deep": {"er": carrier}}):
                evaluated = result({"accuracy": hidden}, kind=DataKind.METRICS)
                assert_blocked(guard, evaluated, fl_ctx, "the metrics of the result holds")
                trained = result(update(), meta={"loss": hidden})
                assert_blocked(guard, trained, fl_ctx, "the meta data of the result holds")
                trained = result(update())
                trained.set_header("loss", hidden)
                assert_blocked(guard, trained, fl_ctx, "a header of the result holds")
        name = Letters("bias")
        name.raw = raw  # type: ignore[attr-defined]
        assert_blocked(guard, result({name: np.ones(2)}), fl_ctx, "the name 'bias'")
        for kind, data in ((DataKind.WEIGHT_DIFF, update()), (DataKind.METRICS, {"loss": 0.5})):
            for tables in (Table(), Table(seen=2)):
                tables.raw = raw  # type: ignore[attr-defined]
                came = Answer(result(data, kind=kind, meta=tables))
                came.set_header(ReservedHeaderKey.CONTENT_TYPE, "DXO")
                came.raw = raw
                left = fobs.dumps(guard.process(came, fl_ctx))
                assert raw.tobytes() in fobs.dumps(came)
                assert raw.tobytes() not in left
                assert len(left) < 4000

    def test_what_leaves_is_of_the_builtin_types(self, tmp_path: Path) -> None:
        given = {
            "numbers": (1, np.float64(2.0), np.int8(3), np.bool_(True), torch.tensor(0.5)),
            "kind": DataKind.WEIGHTS,
            "none": None,
        }
        found = sent(GuardFilter(text(TOP_K)), result(update(), meta=given), context(tmp_path)).meta
        assert repr(found["numbers"]) == "[1, 2.0, 3, True, 0.5]"
        assert (type(found["kind"]), found["kind"], found["none"]) == (str, "WEIGHTS", None)

    def test_with_dp_less_may_be_beside_the_update(self, tmp_path: Path) -> None:
        def beside(**meta: object) -> Shareable:
            shareable = result(update(), meta=meta)
            shareable.set_header(AppConstants.CURRENT_ROUND, 0)
            return shareable

        guard = GuardFilter(text(Identity()), noise_multiplier=1.0, max_update_norm=1.0)
        for much in ([0.5] * 100, "x" * 1000):
            assert_blocked(guard, beside(losses=much), context(tmp_path), "more than 100 values")
            sent(GuardFilter(text(TOP_K)), beside(losses=much), context(tmp_path / "plain"))
        sent(guard, beside(losses=[0.5] * 80), context(tmp_path))

    def test_an_encrypted_or_defended_update_is_blocked(self, tmp_path: Path) -> None:
        guard, fl_ctx = GuardFilter(text(TOP_K)), context(tmp_path)
        encrypted = result(update(), meta={MetaKey.PROCESSED_ALGORITHM: "HE"})
        assert_blocked(guard, encrypted, fl_ctx, "'HE'")
        assert_blocked(guard, guard.process(result(update()), fl_ctx), fl_ctx, "already")

    def test_of_a_result_that_failed_only_the_code_is_sent(self, tmp_path: Path) -> None:
        failed = result(update())
        failed.set_return_code(ReturnCode.EXECUTION_EXCEPTION)
        failed.set_header("also", update())
        found = GuardFilter(text(TOP_K)).process(failed, context(tmp_path))
        assert dict(found) == dict(make_reply(ReturnCode.EXECUTION_EXCEPTION))
        for code in ("0.1, 0.7, 0.2", 7, Letters("ERROR")):
            failed.set_return_code(code)
            found = GuardFilter(text(TOP_K)).process(failed, context(tmp_path))
            assert type(found.get_return_code()) is str
            assert dict(found) == dict(make_reply(ReturnCode.ERROR))

    def test_metrics_pass_unless_arrays_are_among_them(self, tmp_path: Path) -> None:
        guard, fl_ctx = GuardFilter(text(TOP_K)), context(tmp_path)
        metrics = {"accuracy": 0.5, "per class": [0.1, 0.9], "loss": np.float32(2.0), "at": True}
        metrics |= {"more": torch.tensor(0.5), "none": None, "name": "x", "most": np.array([7])}
        shareable = result(metrics, kind=DataKind.METRICS)
        shareable["DXO"]["raw"] = update()
        passed = guard.process(shareable, fl_ctx)
        assert from_shareable(passed).data == metrics
        assert passed["DXO"].keys() == {"kind", "data", "meta"}
        shareable = result({"weights": np.zeros(3)}, kind=DataKind.METRICS)
        assert_blocked(guard, shareable, fl_ctx, "the metrics of the result holds")

    def test_a_result_that_is_blocked_is_not_touched_and_costs_no_memory(
        self, tmp_path: Path
    ) -> None:
        guard, fl_ctx = GuardFilter(text(TOP_K)), context(tmp_path)
        expected = UpdateGuard(TOP_K, tensors(update()))
        for number in range(3):
            bad = update(number)
            bad["weight"][0, 0] = np.nan
            assert_blocked(guard, result(bad), fl_ctx, "NaN")
            raw = tensors(update(number))
            found = sent(guard, result(update(number)), fl_ctx).data
            assert_bitwise(found, expected.protect(zeros(raw), raw))

    def test_the_filter_in_the_wrong_place_blocks(self, tmp_path: Path) -> None:
        fl_ctx = context(tmp_path)
        guard = GuardFilter(text(TOP_K))
        guard.set_prop(FilterContextKey.CHAIN_TYPE, FilterChainType.TASK_DATA_CHAIN)
        assert_blocked(guard, result(update()), fl_ctx, "task_result_filters")
        fl_ctx.set_prop(FLContextKey.FILTER_DIRECTION, FilterKey.IN, private=True, sticky=False)
        assert_blocked(GuardFilter(text(TOP_K)), result(update()), fl_ctx, "direction")

    def test_a_job_that_may_bring_no_code_names_none(self, tmp_path: Path) -> None:
        guard = GuardFilter(text(TOP_K), model="tests.integrations.test_nvflare:Tied")
        guard.set_prop(FilterContextKey.SOURCE, FilterSource.JOB)
        assert_blocked(guard, result(update()), context(tmp_path), "may bring none")

    def test_buffers_that_training_has_changed_need_a_policy(self, tmp_path: Path) -> None:
        data = {**update(), "norm.running_mean": np.ones(4, dtype=np.float32)}
        assert_blocked(GuardFilter(text(TOP_K)), result(data), context(tmp_path / "a"), "buffers")
        withheld = GuardFilter(text(TOP_K), buffers="withhold")
        found = sent(withheld, result(data), context(tmp_path / "b"))
        assert not found.data["norm.running_mean"].any()

    def test_only_by_nvflares_own_runner_of_filters(self, tmp_path: Path) -> None:
        """As NVFlare calls it, with a filter of a job after that of the site."""
        seen: list[Shareable] = []

        class Other(GuardFilter):
            def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
                seen.append(shareable)
                return shareable

        fl_ctx = context(tmp_path)
        table = {"train/out": [GuardFilter(text(TOP_K)), Other(text(TOP_K))]}
        bad = result({**update(), "bias": np.full(4, np.nan, dtype=np.float32)})
        with pytest.raises(ContentBlockedException):
            apply_filters("task_result_filters", bad, fl_ctx, table, "train", FilterKey.OUT)
        assert not seen


def deployed(folder: Path, job: str) -> None:
    """Have NVFlare deploy an empty app as ``job``, which empties what was there."""
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    workspace = Workspace(str(folder), SITE)
    with contextlib.suppress(Exception):  # it has no configuration, which is noticed after that
        AppDeployer().deploy(workspace, job, {}, "app", empty.getvalue(), context(folder))
    assert not list(Path(workspace.get_run_dir(job)).rglob("*.safetensors"))
    context(folder)


class TestTheMemoryOfASite:
    def file(self, folder: Path) -> Path:
        [found] = folder.glob(f"{JOB}/gradguard/*.safetensors")
        return found

    def test_is_readable_by_its_owner_only(self, tmp_path: Path) -> None:
        sent(GuardFilter(text(TOP_K)), result(update()), context(tmp_path))
        assert stat.S_IMODE(self.file(tmp_path).stat().st_mode) == 0o600
        assert [path.name for path in self.file(tmp_path).parent.iterdir()] == [
            "site-1.safetensors"
        ]

    def test_once_lost_blocks_in_the_same_process(self, tmp_path: Path) -> None:
        guard, fl_ctx = GuardFilter(text(TOP_K)), context(tmp_path)
        sent(guard, result(update()), fl_ctx)
        older = self.file(tmp_path).read_bytes()
        sent(guard, result(update()), fl_ctx)
        self.file(tmp_path).write_bytes(older)
        assert_blocked(guard, result(update()), fl_ctx, "older than")
        self.file(tmp_path).unlink()
        assert_blocked(guard, result(update()), fl_ctx, "deleted")

    @pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
    def test_once_damaged_blocks(self, damage: bytes | None, tmp_path: Path) -> None:
        sent(GuardFilter(text(TOP_K)), result(update()), context(tmp_path))
        path = self.file(tmp_path)
        path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
        assert_blocked(GuardFilter(text(TOP_K)), result(update()), context(tmp_path), "remembers")

    def test_with_any_byte_changed_blocks_or_is_the_same(self, tmp_path: Path) -> None:
        sent(GuardFilter(text(TOP_K)), result(update()), context(tmp_path))
        where, path = place(context(tmp_path)), self.file(tmp_path)
        before, good = recall(where), path.read_bytes()
        assert before is not None
        passed = 0
        for at in range(len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
            try:
                after = recall(where)
            except ValueError:
                continue
            passed += 1
            assert after is not None
            assert str(after) == str(before)
        assert passed < len(good) / 20

    @pytest.mark.parametrize("transform", [AddGaussian(1.0), chain(Quantize(2))], ids=repr)
    def test_once_restored_shares_no_noise(self, transform: GradTransform, tmp_path: Path) -> None:
        sent(GuardFilter(text(transform)), result(update()), context(tmp_path))
        saved, lock = self.file(tmp_path).read_bytes(), place(context(tmp_path)).lock
        count = lock.read_bytes()
        found = []
        for _ in range(2):
            self.file(tmp_path).write_bytes(saved)
            lock.write_bytes(count)
            one = GuardFilter(text(transform))
            found.append(sent(one, result(update(1)), context(tmp_path)).data)
        assert np.any(found[0]["weight"] != found[1]["weight"])

    def test_of_another_job_or_site_blocks(self, tmp_path: Path) -> None:
        sent(GuardFilter(text(TOP_K)), result(update()), context(tmp_path))
        for other in ({"job": "another"}, {"site": "site-2"}):
            fl_ctx = context(tmp_path, **other)
            path = place(fl_ctx).path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.file(tmp_path).read_bytes())
            assert_blocked(GuardFilter(text(TOP_K)), result(update()), fl_ctx, "it is of job")
            path.unlink()

    def test_once_lost_blocks_in_every_process(self, tmp_path: Path) -> None:
        """As when the job is deployed again, under the same id."""
        sent(GuardFilter(text(TOP_K)), result(update()), context(tmp_path))
        older = self.file(tmp_path).read_bytes()
        sent(GuardFilter(text(TOP_K)), result(update()), context(tmp_path))
        self.file(tmp_path).write_bytes(older)
        assert_blocked(GuardFilter(text(TOP_K)), result(update()), context(tmp_path), "older than")
        deployed(tmp_path, JOB)
        assert_blocked(GuardFilter(text(TOP_K)), result(update()), context(tmp_path), "deployed")
        sent(GuardFilter(text(TOP_K)), result(update()), context(tmp_path, job="another"))

    def test_of_how_many_were_sent_once_damaged_blocks(self, tmp_path: Path) -> None:
        sent(GuardFilter(text(TOP_K)), result(update()), context(tmp_path))
        lock = place(context(tmp_path)).lock
        assert lock == tmp_path / ".gradguard" / "jobs" / JOB / "site-1.lock"
        assert (lock.read_text(), stat.S_IMODE(lock.stat().st_mode)) == (f"{1:020d}\n", 0o600)
        for damaged in ("1", "x" * 21, f"{1:020d}\n0"):
            lock.write_text(damaged)
            assert_blocked(GuardFilter(text(TOP_K)), result(update()), context(tmp_path), "damaged")

    def test_is_used_by_one_process_at_a_time(self, tmp_path: Path) -> None:
        fl_ctx = context(tmp_path)
        guard = GuardFilter(text(Identity()), noise_multiplier=1.0, max_update_norm=0.5)
        came = result(update())
        came.set_header(AppConstants.CURRENT_ROUND, 0)
        with ThreadPoolExecutor(1) as pool:
            with alone(place(fl_ctx).lock):
                waiting = pool.submit(guard.process, came, fl_ctx)
                assert not wait([waiting], timeout=0.2).done
                assert not list(tmp_path.glob(f"{JOB}/**/*.safetensors"))
            assert from_shareable(waiting.result()).meta["gradguard.releases"] == 1

    @pytest.mark.parametrize(
        "changed",
        [
            {"defense": text(ErrorFeedback(KeepTopK(0.5)))},
            {"buffers": "withhold"},
            {"simulation_seed": 1},
            {"noise_multiplier": 1.0, "max_update_norm": 1.0},
        ],
        ids=str,
    )
    def test_of_other_settings_blocks(self, changed: dict[str, Any], tmp_path: Path) -> None:
        sent(GuardFilter(text(TOP_K)), result(update()), context(tmp_path))
        other = GuardFilter(**{"defense": text(TOP_K), **changed})
        assert_blocked(other, result(update()), context(tmp_path), "other settings")

    def test_is_written_before_anything_is_sent(self, tmp_path: Path) -> None:
        (tmp_path / JOB).mkdir(parents=True)
        (tmp_path / JOB / "gradguard").write_text("in the way")
        assert_blocked(
            GuardFilter(text(TOP_K)), result(update()), context(tmp_path), "sent nothing"
        )

    def test_has_a_place_or_nothing_is_sent(self, tmp_path: Path) -> None:
        for missing in (ReservedKey.RUN_NUM, ReservedKey.IDENTITY_NAME):
            fl_ctx = context(tmp_path)
            fl_ctx.set_prop(missing, "", private=False)
            assert_blocked(GuardFilter(text(TOP_K)), result(update()), fl_ctx, "no job or site")
        fl_ctx = context(tmp_path)
        fl_ctx.set_prop(FLContextKey.WORKSPACE_OBJECT, None, private=True)
        assert_blocked(GuardFilter(text(TOP_K)), result(update()), fl_ctx, "workspace")


class TestClientLevelDP:
    def guard(self, **more: Any) -> GuardFilter:
        given: dict[str, Any] = {"noise_multiplier": 1.0, "max_update_norm": 0.5, "delta": 1e-5}
        return GuardFilter(text(Identity()), **(given | more))

    def test_epsilon_accumulates_over_rounds_and_processes(self, tmp_path: Path) -> None:
        for number in range(1, 4):
            found = sent(self.guard(), begun(), context(tmp_path)).meta
            assert found["gradguard.epsilon"] == pytest.approx(ClientDP(1.0, 0.5).epsilon(number))
            assert found["gradguard.releases"] == number
            assert (found["gradguard.delta"], found["gradguard.unit"]) == (1e-5, "client")
            fobs.loads(fobs.dumps(result({}, meta=found)))  # as it travels

    def test_the_noise_is_that_of_the_mechanism_on_the_clipped_update(self, tmp_path: Path) -> None:
        data = {"weight": np.full((100, 100), 7.0, dtype=np.float32)}
        noised = sent(self.guard(), begun(data), context(tmp_path)).data["weight"]
        noise = noised - 0.5 / 100
        assert abs(noise.mean()) < 4 * 0.5 / 100
        assert abs(noise.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * 10_000)

    def test_two_processes_from_one_memory_share_no_noise(self, tmp_path: Path) -> None:
        one = sent(self.guard(), begun(), context(tmp_path / "a")).data["weight"]
        two = sent(self.guard(), begun(), context(tmp_path / "b")).data["weight"]
        assert not np.any(one == two)

    def test_beyond_the_budget_nothing_is_sent(self, tmp_path: Path) -> None:
        budget = ClientDP(1.0, 0.5).epsilon(2) + 1e-6
        for _ in range(2):
            sent(self.guard(max_epsilon=budget), begun(), context(tmp_path))
        for _ in range(2):
            guard = self.guard(max_epsilon=budget)
            assert_blocked(guard, begun(), context(tmp_path), "above the budget")

    def test_the_ledger_of_a_site_is_of_all_its_jobs(self, tmp_path: Path) -> None:
        budget = ClientDP(1.0, 0.5).epsilon(3) + 1e-6
        jobs = [f"00000000-0000-0000-0000-00000000000{number}" for number in range(4)]
        for job in jobs[:3]:
            guard = self.guard(max_epsilon=budget, ledger="patients")
            found = sent(guard, begun(), context(tmp_path, job=job)).meta
            assert found["gradguard.releases"] == 1  # the server hears of its own job
        for job in jobs:
            guard = self.guard(max_epsilon=budget, ledger="patients")
            fl_ctx = context(tmp_path, job=job)
            assert_blocked(guard, begun(), fl_ctx, "above the budget")
        file = tmp_path / ".gradguard" / "patients.json"
        assert read_ledger(file).releases == 3
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        other = self.guard(max_epsilon=budget, ledger="others")
        sent(other, begun(), context(tmp_path, job=jobs[3]))

    def test_the_ledger_of_a_site_once_lost_or_damaged_blocks(self, tmp_path: Path) -> None:
        def guard() -> GuardFilter:
            return self.guard(ledger="patients")

        sent(guard(), begun(), context(tmp_path))
        file = tmp_path / ".gradguard" / "patients.json"
        text = file.read_text()
        for damaged in ("", "{}", "[]", text[:-2], text.replace("1.0", "2.0")):
            file.write_text(damaged)
            assert_blocked(guard(), begun(), context(tmp_path), "sent nothing")
        file.unlink()
        assert_blocked(guard(), begun(), context(tmp_path), "it was lost")
        file.write_text(text)
        assert sent(guard(), begun(), context(tmp_path)).meta["gradguard.releases"] == 2

    def test_no_job_can_remove_the_ledger_of_a_site(self, tmp_path: Path) -> None:
        sent(self.guard(ledger="patients"), begun(), context(tmp_path))
        for job in ("gradguard", "local", "startup", "jobs", "patients.json"):
            deployed(tmp_path, job)
        file = tmp_path / ".gradguard" / "patients.json"
        assert read_ledger(file).releases == 1
        with pytest.raises(ValueError, match="invalid job_id"):
            Workspace(str(tmp_path), SITE).get_run_dir(".gradguard")

    def test_a_ledger_where_a_job_could_remove_it_blocks(self, tmp_path: Path) -> None:
        fl_ctx = context(tmp_path)
        (tmp_path / ".gradguard").mkdir()
        (tmp_path / ".gradguard" / "patients.json").symlink_to(tmp_path / "job" / "shared.json")
        guard = self.guard(ledger="patients")
        assert_blocked(guard, begun(), fl_ctx, "a job called 'job' would remove it")

    def test_a_linked_ledger_is_booked_where_the_link_leads(self, tmp_path: Path) -> None:
        shared = tmp_path / "shared" / "patients.json"
        shared.parent.mkdir()
        for number, site in enumerate(("site-1", "site-2", "site-1"), start=1):
            fl_ctx = context(tmp_path / site, site=site)
            link = tmp_path / site / ".gradguard" / "patients.json"
            link.parent.mkdir(exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(shared)
            sent(self.guard(ledger="patients"), begun(), fl_ctx)
            assert link.is_symlink()
            assert read_ledger(shared).releases == number

    def test_the_ledger_of_a_site_once_lost_or_older_blocks_new_jobs(self, tmp_path: Path) -> None:
        file = tmp_path / ".gradguard" / "patients.json"
        held = []
        for job in ("one", "two"):
            sent(self.guard(ledger="patients"), begun(), context(tmp_path, job=job))
            held.append(file.read_text())
        for older in (None, held[0]):
            file.unlink() if older is None else file.write_text(older)
            for job in ("one", "two", "three"):
                guard = self.guard(ledger="patients")
                assert_blocked(guard, begun(), context(tmp_path, job=job), "it was lost")
        file.with_suffix(".lock").unlink()  # what the jobs remember remains
        assert_blocked(guard, begun(), context(tmp_path, job="two"), "at least 2")
        file.write_text(held[1])
        sent(self.guard(ledger="patients"), begun(), context(tmp_path, job="three"))
        assert read_ledger(file).releases == 3

    def test_jobs_at_the_same_time_are_booked_one_by_one(self, tmp_path: Path) -> None:
        path, dp = tmp_path / "ledger.json", ClientDP(1.0, 0.5)

        def booked(_: int) -> None:
            for _ in range(10):
                book(path, dp, max_epsilon=None, at_least=0)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(booked, range(4)))
        assert read_ledger(path).releases == 40

    def test_a_round_that_is_blocked_costs_the_site_nothing(self, tmp_path: Path) -> None:
        guard = self.guard(ledger="patients")
        bad = begun({**update(), "bias": np.full(4, np.nan, dtype=np.float32)})
        assert_blocked(guard, bad, context(tmp_path), "NaN")
        assert not (tmp_path / ".gradguard" / "patients.json").exists()

    @pytest.mark.parametrize("now", [None, 2, 7.0, 0.0, "0", False, -1, np.int64(0)], ids=repr)
    def test_a_ledger_that_may_be_lost_blocks(self, now: object, tmp_path: Path) -> None:
        """Whatever else the result says: a server or an executor chooses its headers."""
        late = result(update())
        if now is not None:
            late.set_header(AppConstants.CURRENT_ROUND, now)
        late.set_header(AppConstants.START_ROUND, now)
        assert_blocked(self.guard(), late, context(tmp_path), "remembers no round")
        joined = sent(self.guard(joins_late=True), late, context(tmp_path)).meta
        assert joined["gradguard.releases"] == 1
        assert sent(self.guard(), late, context(tmp_path)).meta["gradguard.releases"] == 2


class TestTheModelOfTheSite:
    def changed(self) -> dict[str, np.ndarray]:
        torch.manual_seed(0)
        state = Tied().state_dict()
        return {
            name: (torch.randn_like(t) if t.is_floating_point() else t + 1).numpy()
            for name, t in state.items()
        } | {"last.weight": np.zeros(0)}

    def test_says_what_is_tied_and_what_a_buffer(self, tmp_path: Path) -> None:
        data = self.changed()
        data["last.weight"] = data["first.weight"]
        guard = GuardFilter(
            text(ErrorFeedback(KeepTopK(0.25))),
            buffers="withhold",
            model="tests.integrations.test_nvflare:Tied",
        )
        found = sent(guard, result(data), context(tmp_path)).data
        plain = UpdateGuard(TOP_K, Tied(), buffers="withhold")
        assert_bitwise(found, plain.protect(zeros(tensors(data)), tensors(data)))
        np.testing.assert_array_equal(found["first.weight"], found["last.weight"])
        assert not found["norm.running_var"].any()

    def test_blocks_updates_of_another_model(self, tmp_path: Path) -> None:
        guard = GuardFilter(text(TOP_K), model="tests.integrations.test_nvflare:Tied")
        assert_blocked(guard, result(update()), context(tmp_path), "sent nothing")

    @pytest.mark.parametrize(
        "name", ["", "torch.nn", "torch.nn:", "no.such:f", "math:pi", "os:getcwd"]
    )
    def test_that_cannot_be_made_blocks(self, name: str, tmp_path: Path) -> None:
        guard = GuardFilter(text(TOP_K), model=name)
        assert_blocked(guard, result(update()), context(tmp_path), "model")


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"defense": "{"}, "does not parse"),
            ({"defense": {"name": "x", "transform": []}}, "to_json"),
            ({"defense": text(TOP_K), "wire": 1}, "wire must be true or false"),
            ({"defense": text(TOP_K), "joins_late": "yes"}, "joins_late"),
            ({"defense": text(TOP_K), "buffers": "keep"}, "buffers"),
            ({"defense": text(TOP_K), "model": 3}, "model"),
            ({"defense": text(TOP_K), "simulation_seed": 1.5}, "simulation_seed"),
            ({"defense": text(TOP_K), "noise_multiplier": 1.0}, "max_update_norm"),
            ({"defense": text(TOP_K), "delta": 1e-5}, "noise_multiplier"),
            ({"defense": text(TOP_K), "max_epsilon": 1.0}, "nothing here has an epsilon"),
            ({"defense": text(TOP_K), "ledger": "a"}, "nothing here has an epsilon"),
            ({"defense": text(TOP_K), "ledger": "../a"}, "letters, digits"),
            (
                {
                    "defense": text(TOP_K),
                    "noise_multiplier": 1.0,
                    "max_update_norm": 1.0,
                    "ledger": "a",
                    "simulation_seed": 1,
                },
                "a simulation is not booked",
            ),
            (
                {"defense": text(TOP_K), "noise_multiplier": float("nan"), "max_update_norm": 1.0},
                "noise_multiplier",
            ),
            (
                {
                    "defense": text(TOP_K),
                    "noise_multiplier": 1.0,
                    "max_update_norm": 1.0,
                    "buffers": "send",
                },
                "withheld",
            ),
            ({"defense": text(TOP_K), "wire": True, "aggregated": True}, "secure aggregation"),
        ],
    )
    def test_that_are_out_of_range_or_contradict_each_other_raise(
        self, arguments: dict[str, Any], match: str
    ) -> None:
        with pytest.raises(ValueError, match=match):
            GuardFilter(**arguments)

    def test_a_cohort_has_to_be_vouched_for(self) -> None:
        defense = Defense("sum", transform=TOP_K, cohort=8).to_json()
        with pytest.raises(ValueError, match="sum of the messages of 8 clients"):
            GuardFilter(defense)
        GuardFilter(defense, aggregated=True)

    def test_dp_sgd_is_not_a_filters_to_give(self) -> None:
        defense = Defense("dp", transform=[], dp=DPSGD(1.0, 1.0)).to_json()
        with pytest.raises(ValueError, match="DP-SGD"):
            GuardFilter(defense)

    def test_nvflares_job_api_writes_all_that_differ_from_the_defaults(self) -> None:
        given: dict[str, Any] = {
            "defense": text(Sign()),
            "noise_multiplier": 1.0,
            "max_update_norm": 2.0,
            "delta": 1e-6,
            "max_epsilon": 9.0,
            "model": "a:b",
            "wire": True,
            "joins_late": True,
            "simulation_seed": 5,
        }
        job = FedJobConfig("job", min_clients=1)
        assert job._get_args(GuardFilter(**given), "") == given
        assert job._get_args(DecodingFilter(model="a:b"), "") == {"model": "a:b"}


class TestPrivacyJson:
    def made(self, folder: Path, **args: Any) -> GuardFilter:
        context(folder)
        table = {"path": "gradguard.integrations.nvflare.GuardFilter", "args": args}
        scope = {"name": "guarded", "task_result_filters": [table]}
        path = folder / "local" / "privacy.json"
        path.write_text(json.dumps({"scopes": [scope], "default_scope": "guarded"}))
        manager = create_privacy_manager(Workspace(str(folder), SITE), names_only=False)
        [found] = manager.default_scope.task_result_filters[FilterKey.OUT]
        assert isinstance(found, GuardFilter)
        return found

    @pytest.mark.parametrize(
        "transform", [Identity(), TOP_K, ErrorFeedback(chain(KeepTopK(0.1), Quantize(4)))], ids=repr
    )
    def test_hands_the_text_of_a_defence_on_as_it_is(
        self, transform: GradTransform, tmp_path: Path
    ) -> None:
        guard = self.made(tmp_path, defense=text(transform), wire=True)
        assert guard.settings.defense == Defense("tested", transform=transform)
        assert guard.settings.wire
        sent(guard, result(update()), context(tmp_path))

    def test_of_a_deployed_site_is_applied_to_jobs_that_name_no_scope(self, tmp_path: Path) -> None:
        self.made(tmp_path, defense=text(TOP_K))
        workspace = Workspace(str(tmp_path), SITE)
        meta = Path(workspace.get_job_meta_path(JOB))
        meta.parent.mkdir()
        meta.write_text("{}")
        fl_ctx = context(tmp_path)
        PrivacyService.initialize(create_privacy_manager(workspace, names_only=False))
        try:
            for key, value in create_job_processing_context_properties(workspace, JOB).items():
                fl_ctx.set_prop(key, value, private=True)
        finally:
            PrivacyService.initialize(None)
        raw = tensors(update())
        table: dict[str, Any] = {}
        given = ("task_result_filters", result(update()), fl_ctx, table, "train", FilterKey.OUT)
        found = from_shareable(apply_filters(*given))
        assert_bitwise(found.data, UpdateGuard(TOP_K, raw).protect(zeros(raw), raw))

    def example(self, folder: Path, whose: str) -> Any:
        context(folder)
        file = EXAMPLE / whose / "privacy.json"
        (folder / "local" / "privacy.json").write_text(file.read_text())
        workspace = Workspace(str(folder), whose)
        return create_privacy_manager(workspace, False, is_server=whose == "server")

    def test_of_the_example_lasts_for_twenty_rounds(self, tmp_path: Path) -> None:
        """Of all jobs, whatever scope they name."""
        site = self.example(tmp_path, "site")
        fl_ctx, guards = context(tmp_path), []
        for scope in site.name_to_scopes.values():
            guards += scope.task_result_filters[FilterKey.OUT]
        for number in range(20):
            guard = guards[number % len(guards)]
            sent(guard, begun(), context(tmp_path, job=f"job-{number % 3}"))
        for guard in guards:
            for job in ("job-0", "another"):
                fl_ctx = context(tmp_path, job=job)
                assert_blocked(guard, begun(), fl_ctx, "budget of 8")

    def test_of_the_examples_have_scopes_that_the_server_decodes(self, tmp_path: Path) -> None:
        server = self.example(tmp_path / "server", "server")
        for scope in server.name_to_scopes.values():
            assert isinstance(scope.task_result_filters[FilterKey.IN][0], DecodingFilter)
        for whose in ("site", "site-top-k"):
            site = self.example(tmp_path / whose, whose)
            assert site.name_to_scopes.keys() <= server.name_to_scopes.keys()
            [guard] = site.default_scope.task_result_filters[FilterKey.OUT]
            assert len(site.name_to_scopes) == 1  # a job could name another, without the budget
            sent(guard, begun(), context(tmp_path / whose))

    def test_with_a_mistake_in_it_raises_before_a_job_runs(self, tmp_path: Path) -> None:
        with pytest.raises(Exception, match=r"did you mean 'KeepTopK'"):
            self.made(tmp_path, defense=text(TOP_K).replace("KeepTopK", "KeepTopKK"))
        # Braces once: NVFlare takes the text for a variable of its own.
        with pytest.raises(Exception, match="bad parameterized expression"):
            self.made(tmp_path, defense='{"name": "none", "transform": []}')


class TestWire:
    def travelled(self, shareable: Shareable) -> Shareable:
        found: Shareable = fobs.loads(fobs.dumps(shareable))
        return found

    def server(self, folder: Path, model: dict[str, Any] | None = None) -> FLContext:
        found = context(folder / "server", site="server")
        weights = update() if model is None else model
        learnable = make_model_learnable(weights, {})
        found.set_prop(AppConstants.GLOBAL_MODEL, learnable, private=True, sticky=True)
        return found

    def message(self, folder: Path, data: dict[str, Any] | None = None) -> Shareable:
        guard = GuardFilter(text(TOP_K), wire=True)
        data = update() if data is None else data
        shareable = result(data, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: 5})
        return self.travelled(guard.process(shareable, context(folder)))

    def test_decodes_to_the_defended_update(self, tmp_path: Path) -> None:
        message = self.message(tmp_path)
        payload = from_shareable(message).data[WIRE_KEY]
        decoded = from_shareable(DecodingFilter().process(message, self.server(tmp_path)))
        raw = tensors(update())
        assert_bitwise(decoded.data, UpdateGuard(TOP_K, raw).protect(zeros(raw), raw))
        assert decoded.data_kind == DataKind.WEIGHT_DIFF
        assert decoded.meta["gradguard.bytes.sent"] == len(payload)
        assert decoded.meta["gradguard.bytes.dense"] == sum(a.nbytes for a in update().values())
        assert decoded.meta[MetaKey.NUM_STEPS_CURRENT_ROUND] == 5
        assert decoded.get_filter_history() == ["GuardFilter", "DecodingFilter"]

    def test_gives_the_library_of_the_servers_model(self, tmp_path: Path) -> None:
        server = self.server(tmp_path, dict(tensors(update())))
        decoded = from_shareable(DecodingFilter().process(self.message(tmp_path), server))
        assert all(isinstance(tensor, Tensor) for tensor in decoded.data.values())

    def test_half_precision_comes_as_float32(self, tmp_path: Path) -> None:
        half = {name: a.astype(np.float16) for name, a in update().items() if a.dtype.kind == "f"}
        server = self.server(tmp_path, half)
        decoded = from_shareable(DecodingFilter().process(self.message(tmp_path, half), server))
        assert {array.dtype for array in decoded.data.values()} == {np.dtype(np.float32)}

    def test_counters_that_the_server_has_averaged_fit(self, tmp_path: Path) -> None:
        server = self.server(tmp_path, {**update(), "steps": np.array(2.5)})
        decoded = from_shareable(DecodingFilter().process(self.message(tmp_path), server))
        assert (decoded.data["steps"].dtype, decoded.data["steps"]) == (np.float64, 0)

    @pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
    def test_no_message_chooses_its_dtype(self, kind: str, tmp_path: Path) -> None:
        """Whose first message is of float16 would have all others overflow in the sum."""
        model = {name: a.astype(kind) if a.dtype.kind == "f" else a for name, a in update().items()}
        server, wide = self.server(tmp_path, model), max(np.dtype(kind), np.dtype("f4"))

        def decoded(**changed: Tensor) -> dict[str, np.ndarray]:
            payload = wire.encode({**tensors(update()), **changed})
            shareable = result({WIRE_KEY: payload}, kind=DataKind.APP_DEFINED)
            found: dict[str, np.ndarray] = from_shareable(
                DecodingFilter().process(shareable, server)
            ).data
            return found

        ones = torch.ones(4)
        for sent_as in (torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.uint8):
            found = decoded(bias=ones.to(sent_as))["bias"]
            assert (found.dtype, found.tolist()) == (wide, [1.0] * 4)
        assert decoded(steps=torch.tensor(2, dtype=torch.uint8))["steps"].dtype == np.int64
        with pytest.raises(ContentBlockedException, match="expected a change of"):
            decoded(bias=ones.to(torch.bool))
        if wide != np.dtype("f8"):
            with pytest.raises(ContentBlockedException, match="NaN or infinity"):
                decoded(bias=torch.full((4,), 1e300, dtype=torch.float64))

    def test_no_message_takes_much_more_than_the_model(self, tmp_path: Path) -> None:
        server = self.server(tmp_path, {"w": np.zeros(400_000, np.float16)})
        for dtype, passes in ((torch.float32, True), (torch.float64, False)):
            payload = wire.encode({"w": torch.ones(400_000, dtype=dtype)})
            shareable = result({WIRE_KEY: payload}, kind=DataKind.APP_DEFINED)
            if passes:
                DecodingFilter().process(shareable, server)
                continue
            with pytest.raises(ContentBlockedException, match="max_bytes"):
                DecodingFilter().process(shareable, server)

    def test_a_factory_stands_in_for_the_controllers_model(self, tmp_path: Path) -> None:
        data = {name: t.numpy() for name, t in Digits().state_dict().items()}
        message = self.message(tmp_path, data)
        decoder = DecodingFilter(model="tests.integrations.nvflare_site:Digits")
        decoded = from_shareable(decoder.process(message, context(tmp_path / "s", site="server")))
        assert decoded.data.keys() == data.keys()

    def test_a_job_that_may_bring_no_code_names_none(self, tmp_path: Path) -> None:
        data = {name: t.numpy() for name, t in Digits().state_dict().items()}
        message = self.message(tmp_path, data)
        decoder = DecodingFilter(model="tests.integrations.nvflare_site:Digits")
        decoder.set_prop(FilterContextKey.SOURCE, FilterSource.JOB)
        server = context(tmp_path / "s", site="server")
        for meta in (None, {}, {"byoc": False}):
            server.set_prop(FLContextKey.JOB_META, meta, private=True)
            with pytest.raises(ContentBlockedException, match="may bring none"):
                decoder.process(message, server)
        server.set_prop(FLContextKey.JOB_META, {"byoc": True}, private=True)
        assert from_shareable(decoder.process(message, server)).data.keys() == data.keys()

    def test_the_model_is_made_once(self, tmp_path: Path) -> None:
        made = []

        def factory() -> nn.Module:
            made.append(Digits())
            return made[-1]

        globals()["counted"] = factory
        data = {name: t.numpy() for name, t in Digits().state_dict().items()}
        message = self.message(tmp_path, data)
        decoder = DecodingFilter(model="tests.integrations.test_nvflare:counted")
        for _ in range(3):
            decoder.process(copy.deepcopy(message), context(tmp_path / "s", site="server"))
        assert len(made) == 1

    def blocked(self, folder: Path, payload: object, match: str, **more: Any) -> None:
        shareable = result({WIRE_KEY: payload, **more}, kind=DataKind.APP_DEFINED)
        with pytest.raises(ContentBlockedException, match=match):
            DecodingFilter().process(shareable, self.server(folder))

    @given(st.data())
    def test_damaged_bytes_are_blocked(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        folder = tmp_path_factory.mktemp("wire")
        good = bytearray(wire.encode(tensors(update())))
        at = data.draw(st.integers(0, len(good) - 1))
        if data.draw(st.booleans()):
            good[at] ^= data.draw(st.integers(1, 255))
            self.blocked(folder, bytes(good), "cannot use")
        else:
            self.blocked(folder, bytes(good[:at]), "cannot use")

    def test_messages_of_another_model_are_blocked(self, tmp_path: Path) -> None:
        def changed(change: Callable[[dict[str, Tensor]], object]) -> bytes:
            entries = tensors(update())
            change(entries)
            return wire.encode(entries)

        self.blocked(tmp_path, changed(lambda e: e.pop("bias")), "'bias' is not in the message")
        self.blocked(tmp_path, changed(lambda e: e.update(more=e["bias"][:0])), "'more' is not in")
        self.blocked(
            tmp_path, changed(lambda e: e.update(bias=torch.zeros(2, 2))), r"shape \(2, 2\)"
        )
        self.blocked(tmp_path, changed(lambda e: e.update(steps=torch.tensor(1.0))), "float32")
        self.blocked(tmp_path, changed(lambda e: e.update(bias=torch.full((4,), torch.nan))), "NaN")

    def test_a_message_that_claims_more_than_the_model_is_blocked(self, tmp_path: Path) -> None:
        huge = wire.encode({"weight": torch.zeros(1_000_000)})
        self.blocked(tmp_path, huge, "max_bytes")

    def test_what_is_no_bytes_is_blocked(self, tmp_path: Path) -> None:
        self.blocked(tmp_path, np.zeros(3), "with bytes")
        self.blocked(tmp_path, "text", "with bytes")
        self.blocked(tmp_path, wire.encode(tensors(update())), "alone", weights=update())

    def test_without_a_model_messages_are_blocked(self, tmp_path: Path) -> None:
        for learnable in (None, make_model_learnable({}, {})):
            server = self.server(tmp_path)
            server.set_prop(AppConstants.GLOBAL_MODEL, learnable, private=True, sticky=True)
            with pytest.raises(ContentBlockedException, match="no global model"):
                DecodingFilter().process(self.message(tmp_path), server)

    def test_other_results_pass(self, tmp_path: Path) -> None:
        server = self.server(tmp_path)
        for shareable in (
            result(update()),
            result({"accuracy": 0.5}, kind=DataKind.METRICS),
            result({"else": b""}, kind=DataKind.APP_DEFINED),
            Shareable({"weights": 1}),
            make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR),
        ):
            assert DecodingFilter().process(shareable, server) is shareable

    def test_a_decoder_on_a_site_blocks(self, tmp_path: Path) -> None:
        fl_ctx = self.server(tmp_path)
        fl_ctx.set_prop(FLContextKey.FILTER_DIRECTION, FilterKey.OUT, private=True, sticky=False)
        with pytest.raises(ContentBlockedException, match="server's task_result_filters"):
            DecodingFilter().process(self.message(tmp_path), fl_ctx)
