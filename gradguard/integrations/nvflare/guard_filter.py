"""A defence as a filter of what an NVFlare site sends back, which never lets a result through."""

from __future__ import annotations

import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.filter import ContentBlockedException
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.fl_context_utils import add_job_audit_event
from nvflare.app_common.app_constant import AppConstants

from gradguard.defense import Defense
from gradguard.dp.client_level import PrivateUpdateGuard
from gradguard.integrations.nvflare import site_settings
from gradguard.integrations.nvflare.dxo_arrays import (
    check_parameters,
    dtypes_of,
    tensors_of,
    with_dtypes,
)
from gradguard.integrations.nvflare.outgoing import (
    check_untouched,
    headers_of,
    outgoing_metrics,
    outgoing_update,
    refused_kind,
    reply_of,
    reply_of_code,
)
from gradguard.integrations.nvflare.plain_values import PlainCopier, copier_for
from gradguard.integrations.nvflare.site_files import alone, kept_file, workspace_of
from gradguard.integrations.nvflare.site_ledger import book
from gradguard.integrations.nvflare.site_memory import (
    Memory,
    check_begins,
    check_memory,
    place,
    recall,
    remember,
)
from gradguard.integrations.update_settings import UpdateSettings
from gradguard.updates.layout import Entries
from gradguard.updates.protection import Buffers
from gradguard.updates.update_guard import UpdateGuard


class GuardFilter(DXOFilter):  # type: ignore[misc]
    """Defend every update before it leaves the site, and block what cannot be defended.

    For ``task_result_filters`` of a site's ``privacy.json``, where the site decides, or of a job,
    on a POSIX system.
    Updates are ``WEIGHT_DIFF``, as of ``params_transfer_type=TransferType.DIFF``; whole
    ``WEIGHTS`` are blocked, for when a filter sees them NVFlare has put away the model that they
    are to be compared with. ``METRICS`` pass, and so do results with an error's return code, of
    which nothing but the code is sent.

    NVFlare resolves ``{...}`` in the texts of its files, and takes a text with one pair of braces
    for a variable: write ``[{"Identity": {}}]`` for a defence without transforms.

    Guarantees:

    - a result leaves defended, or blocked; never as it was trained. NVFlare then sends the return
      code ``TASK_RESULT_FILTER_ERROR`` and nothing of the result;
    - what leaves is made anew: no object of the job's, whose attributes NVFlare would send too;
    - beside an update are numbers and texts, at most 1,000 of them and 100,000 characters, and
      with DP 100 and 1,000;
    - results of other kinds, encrypted ones, and arrays beside the update, as SCAFFOLD's, are
      blocked;
    - what the next round needs is on the site's disk before anything is sent; a round that is
      blocked leaves it as it was;
    - nothing is sent where that is damaged, another defence's, older than what was sent, or
      missing though updates were sent under this job's id or, with DP, it is not the job's
      first round;
    - two processes of one job send one after the other, and are booked as two;
    - without ``simulation_seed`` no two updates share noise, not even from one restored state;
    - the update is bitwise that of :class:`gradguard.UpdateGuard`, where the transforms draw
      nothing, or with ``simulation_seed``.

    Not guaranteed: anything about numbers and texts beside the update (losses, numbers of steps);
    about what leaves by other ways than task results: streamed metrics and logs, the messages of
    swarm learning, and the public properties of the context, which go with every message; or about
    jobs that bring their own code, which runs in the filter's process.

    Args:
        defense: The text of ``Defense.to_json()``.
        buffers: ``"withhold"`` or ``"send"``, see :func:`gradguard.protect`.
        noise_multiplier: With ``max_update_norm``: client-level DP before the transforms, see
            :class:`gradguard.dp.ClientDP`; and ``delta`` likewise.
        max_epsilon: Nothing is sent that would bring epsilon above it: that of the job, or with
            ``ledger`` that of all jobs.
        ledger: The name of one for all jobs on the site's data. It is ``NAME.json``, or a link to
            one, in ``.gradguard`` of the site's workspace, which its job processes have to share;
            lost together with ``NAME.lock``, it begins anew. It holds only if every scope on that
            data names it: a filter without it books nothing there. Without it each job begins with
            an empty one.
        model: ``"module:factory"`` of the site's model, for what is a parameter and what a buffer,
            and which weights are tied; without it names and dtypes decide. Only in the site's own
            file, or in a job that may bring code.
        wire: Send gradguard's bytes, for a server with :class:`DecodingFilter`.
        aggregated: That the server sees only the sum of the messages of the defence's cohort.
        joins_late: With DP, that a site without memory has sent nothing in this job, though the
            result's header ``current_round`` is not 0, or there is none. Else it is refused: its
            ledger may have been lost.
        simulation_seed: For simulation only: noise is known, and epsilon infinite.

    Raises:
        ValueError: The arguments are out of range, or contradict each other.

    >>> GuardFilter(defense='{"name": "top-k", "transform": [{"KeepTopK": {"ratio": 0.05}}]}')
    GuardFilter('top-k')
    """

    def __init__(
        self,
        defense: str,
        *,
        buffers: Buffers | None = None,
        noise_multiplier: float | None = None,
        max_update_norm: float | None = None,
        delta: float | None = None,
        max_epsilon: float | None = None,
        ledger: str | None = None,
        model: str | None = None,
        wire: bool = False,
        aggregated: bool = False,
        joins_late: bool = False,
        simulation_seed: int | None = None,
    ) -> None:
        super().__init__(supported_data_kinds=None, data_kinds_to_filter=None)
        if not isinstance(defense, str):
            raise ValueError(f"defense must be the text of Defense.to_json(), got {defense!r}")
        self.settings = UpdateSettings(
            Defense.from_json(defense),
            client_dp=site_settings.client_dp(noise_multiplier, max_update_norm, delta),
            max_epsilon=max_epsilon,
            buffers=buffers,
            wire=wire,
            aggregated=aggregated,
            simulation_seed=simulation_seed,
        )
        site_settings.check_site(self.settings, ledger=ledger, model=model, joins_late=joins_late)
        # Under the arguments' names: NVFlare's Job API writes a job's files from them.
        self.defense, self.buffers, self.model = defense, buffers, model
        self.noise_multiplier, self.max_update_norm = noise_multiplier, max_update_norm
        self.delta, self.max_epsilon, self.ledger = delta, max_epsilon, ledger
        self.wire, self.aggregated, self.joins_late = wire, aggregated, joins_late
        self.simulation_seed = simulation_seed

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The defended result.

        Raises:
            ContentBlockedException: Nothing of the result may leave.
        """
        # DXOFilter.process returns what it cannot read as it is.
        try:
            return self._processed(shareable, fl_ctx)
        except Exception as error:
            raise ContentBlockedException(f"gradguard sent nothing: {error}") from error

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        """The defended update; never ``None``, at which NVFlare sends it as it was.

        Raises:
            ValueError: It cannot be defended.
        """
        return self._trained(dxo, copier_for(self.settings.client_dp), shareable, fl_ctx)

    def _trained(
        self, dxo: DXO, copier: PlainCopier, shareable: Shareable, fl_ctx: FLContext
    ) -> DXO:
        site_settings.check_place(self, fl_ctx)
        if dxo.data_kind != DataKind.WEIGHT_DIFF:
            raise ValueError(refused_kind(dxo.data_kind))
        check_untouched(dxo, type(self).__name__)
        old = DXO(dxo.data_kind, data=dxo.data, meta=copier.table(dxo.meta, "the meta data"))
        return self._defended(tensors_of(dxo.data), old, shareable, fl_ctx)

    def __repr__(self) -> str:
        return f"GuardFilter({self.settings.defense.name!r})"

    def _defended(self, changes: Entries, old: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        where, settings = place(fl_ctx), self.settings.described()
        # Two messages that begin from one memory would be booked as one.
        with alone(where.lock) as tally:
            memory = recall(where)
            check_memory(memory, where, settings, known=tally.count)
            if memory is None:
                self._begin(shareable, fl_ctx)
            changes = with_dtypes(changes, {} if memory is None else memory.dtypes)
            guard = self._guard(changes, memory, fl_ctx)
            zeros = {name: torch.zeros_like(tensor) for name, tensor in changes.items()}
            update = guard.protect(zeros, changes)
            new = outgoing_update(update, guard, old, wire=self.settings.wire)
            new.add_filter_history(type(self).__name__)
            booked = self._book(guard, memory, fl_ctx)
            sent = 1 + (0 if memory is None else memory.sent)
            state = guard.state_to_arrays()
            remember(where, Memory(*state, settings, dtypes_of(changes), sent, booked))
            tally.raise_to(sent)
        return new

    def _processed(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        code = shareable.get_return_code()
        if code != ReturnCode.OK:
            return reply_of_code(code)  # whatever it holds besides stays here
        copier = copier_for(self.settings.client_dp)
        headers = headers_of(shareable, copier)
        dxo = from_shareable(shareable)
        if dxo.data_kind == DataKind.METRICS:
            return reply_of(outgoing_metrics(dxo, copier), headers)
        new = self._trained(dxo, copier, shareable, fl_ctx)
        add_job_audit_event(fl_ctx=fl_ctx, msg=f"applied filter: {self!r}")
        return reply_of(new, headers)

    def _begin(self, shareable: Shareable, fl_ctx: FLContext) -> None:
        if self.settings.is_off:
            name = self.settings.defense.name
            self.log_warning(fl_ctx, f"defence {name!r} changes nothing: updates leave as they are")
        if self.settings.client_dp is not None and not self.joins_late:
            check_begins(shareable.get_header(AppConstants.CURRENT_ROUND))

    def _guard(self, changes: Entries, memory: Memory | None, fl_ctx: FLContext) -> UpdateGuard:
        check_parameters(changes)
        name = self.model
        model = changes if name is None else site_settings.named_model(name, self, fl_ctx)
        guard = self.settings.new_guard(model, fl_ctx.get_identity_name())
        if memory is not None:
            guard.load_arrays(memory.arrays, memory.text)
            if self.settings.simulation_seed is None:
                guard.draw_anew()  # a site that was restored would send the same noise again
        return guard

    def _book(self, guard: UpdateGuard, memory: Memory | None, fl_ctx: FLContext) -> int:
        if self.ledger is None or not isinstance(guard, PrivateUpdateGuard):
            return 0
        path = kept_file(workspace_of(fl_ctx), f"{self.ledger}.json")
        known = max(guard.ledger.releases - 1, 0 if memory is None else memory.booked)
        ledger = book(path, guard.dp, max_epsilon=self.max_epsilon, at_least=known)
        # Not to the server: it need not know of other jobs.
        spent = f"{ledger.epsilon(guard.dp.delta):.4g} at delta {guard.dp.delta:g}"
        self.log_info(fl_ctx, f"{path}: {ledger.releases} updates, epsilon {spent}")
        return ledger.releases
