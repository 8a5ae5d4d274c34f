"""Fit a drift reference: split the documents, fit the manifold on one part, calibrate on the other."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentcomm._core.arrays import takes_arrays
from latentcomm._core.linalg import ROWS_NAMED, require_finite, with_float64
from latentcomm.alignment import row_folds
from latentcomm.drift.detectors import DETECTORS, LOCAL_NEIGHBOURS, LOF_NEIGHBOURS, Manifold, measure_all
from latentcomm.drift.gaussian import fit_clusters, fit_gaussian, rms_normalised
from latentcomm.drift.neighbours import fit_local_density
from latentcomm.drift.reference import DriftReference
from latentcomm.models.sites import Site
from latentcomm.redundancy import principal_subspace
from latentcomm.redundancy.residuals import Groups, group_codes
from latentcomm.similarity import find_sinks
from latentcomm.similarity.views import NORM_LIMIT, SINK_POSITIONS

__all__ = ["fit_drift_reference"]

PARTS = 3
"""One part in so many of the documents is held out: two thirds fit, one third calibrates."""
FEWEST_ROWS = 120
"""A third of them, 40, is the least that resolves a two-sided p-value of 5 %: 2 / (n + 1) of n = 39."""
FEWEST_DOCUMENTS = 12
"""A third of them, 4, is the least that halves into known real states and material for known-off ones, from two."""
SUBSPACE_ENERGY = 0.9
"""Share of the variance that the principal subspace holds."""
N_CLUSTERS = 10
"""Clusters of the RMS view; more than there are kinds of states costs little, since their covariance is shared."""
MOST_NEIGHBOURS = 8192
"""Fitted states among which neighbours are sought at most: time and memory grow with them."""
MOST_HELD_OUT = 4096
"""Held-out states used at most: a percentile's standard error is then below 0.8 points."""


@takes_arrays
def fit_drift_reference(
    rows: Float[Tensor, "row d_model"],
    *,
    seed: int = 0,
    site: Site | None = None,
    model: str | None = None,
    kind: str | None = None,
    groups: Groups | None = None,
    positions: Int[Tensor, " row"] | None = None,
    norm_limit: float | int = NORM_LIMIT,
    background: Float[Tensor, "_ d_model"] | None = None,
) -> DriftReference:
    """Return a reference for a receiver's own states at one site, calibrated on documents that it was not fitted on.

    A third of the rows is held out, whole documents by `groups` (one label a row; of three parts the one with most
    documents); without groups rows are held out by themselves, and where several come from one document real states of
    new documents will raise more alarms than the rate. Give states of the kind that will be measured (last prompt
    tokens, or all tokens). Attention sinks are left out and counted: rows longer than `norm_limit` medians (math.inf
    leaves none out) and, where `positions` counts each row from its document's start, those at the first position; a
    sink that is measured later is then reported as what it is, far off. Beyond 8,192 fitted and 4,096 held-out rows a
    seeded sample serves as bank and calibration; Gaussians and subspace use all. `background` rows make the background
    Gaussian of the relative Mahalanobis distance. The same seed gives the same bits. It is fitted where the rows are
    (with Apple's MPS on the CPU), and the reference is on the CPU.

    Raises:
        ValueError: rows that are fewer than 120, 1 wide, zero, not finite, all equal, equal up to a few, or constant in
            a column, before or after sinks are left out; fewer than 12 documents, or too few rows or documents in the
            held-out third; positions or a norm limit that `latentcomm.similarity.find_sinks` refuses.

    >>> rows = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) + 2
    >>> reference = fit_drift_reference(rows, site=Site(3))
    >>> reference
    DriftReference(blocks.3.hook_resid_post, 200 fitted, 100 held out, width 6)
    >>> reference.drifted(torch.cat((5 * rows[:1], -rows[:1])))
    tensor([True, True])
    """
    rows = rows.detach().to(with_float64(rows.device))
    _require_rows(rows, "rows")
    everywhere = torch.full((rows.shape[0],), SINK_POSITIONS)
    counted = everywhere if positions is None else positions
    sinks = find_sinks([rows], positions=counted, norm_limit=norm_limit, sink_positions=SINK_POSITIONS)
    given = sinks.keep.nonzero().flatten()
    own, codes = rows[given], group_codes(groups, rows.shape[0])[given].unique(return_inverse=True)[1]
    if len(given) < rows.shape[0]:
        _require_rows(own, f"rows without {rows.shape[0] - len(given)} sinks")
    if groups is not None and int(codes.max()) + 1 < FEWEST_DOCUMENTS:
        raise ValueError(
            f"{int(codes.max()) + 1} documents cannot be split for calibration; capture at least {FEWEST_DOCUMENTS}"
        )
    parts = row_folds(own.shape[0], folds=PARTS, groups=codes, seed=seed)
    held = max(parts, key=lambda part: len(codes[part].unique()))
    fitted = torch.ones(own.shape[0], dtype=torch.bool)
    fitted[held] = False
    if len(held) < FEWEST_ROWS // PARTS or len(codes[held].unique()) < FEWEST_DOCUMENTS // PARTS:
        raise ValueError(
            f"the held-out third has {len(held)} rows of {len(codes[held].unique())} documents; capture more documents,"
            f" so that it has {FEWEST_ROWS // PARTS} rows of {FEWEST_DOCUMENTS // PARTS}"
        )
    held = _sample(held, MOST_HELD_OUT, seed)
    manifold = _fit_manifold(own[fitted], background, seed)
    scores = measure_all(manifold, own[held], tuple(DETECTORS))
    return DriftReference(
        site=site,
        model=model,
        kind=kind,
        seed=seed,
        sinks_by_position=sinks.by_position,
        sinks_by_norm=sinks.by_norm,
        n_fitted=int(fitted.sum()),
        manifold=manifold.to("cpu"),
        held_out=own[held].cpu(),
        held_out_rows=given[held],
        held_out_groups=codes[held],
        held_out_scores=torch.stack(list(scores.values()), 1).cpu(),
    )


def _fit_manifold(
    rows: Float[Tensor, "row d_model"], background: Float[Tensor, "_ d_model"] | None, seed: int
) -> Manifold:
    """Fit everything but the calibration."""
    wide, rms = rows.to(torch.float64), rms_normalised(rows, "rows")
    bank = _different(_sample(torch.arange(rows.shape[0]), MOST_NEIGHBOURS, seed), rms)
    if len(bank) <= LOCAL_NEIGHBOURS:
        raise ValueError(
            f"only {len(bank)} of {rows.shape[0]} fitted rows differ; capture more varied text, so that"
            f" {LOCAL_NEIGHBOURS + 1} do"
        )
    mean = wide.mean(0)
    if not bool(mean.any()):
        raise ValueError(f"the mean of {rows.shape[0]} fitted rows is exactly zero; no cosine to it is defined")
    overall = fit_gaussian(rms)
    if background is not None:
        background = background.detach().to(rows.device)
        _require_rows(background, "background")
    return Manifold(
        mean=mean,
        typical_norm=torch.linalg.vector_norm(wide, dim=1).cpu().quantile(0.5),
        overall=overall,
        within=fit_clusters(rms, _cluster_centres(rms[bank], seed)),
        background=overall if background is None else fit_gaussian(rms_normalised(background)),
        subspace=principal_subspace(wide, energy=SUBSPACE_ENERGY),
        bank=rows[bank],
        local=fit_local_density(rms[bank], k=LOF_NEIGHBOURS),
    )


def _cluster_centres(rows: Float[Tensor, "row d_model"], seed: int) -> Float[Tensor, "cluster d_model"]:
    """The centres that k-means finds, by scikit-learn."""
    from sklearn.cluster import KMeans  # a second of import time that only a fit needs

    found = KMeans(n_clusters=min(N_CLUSTERS, len(rows)), n_init="auto", max_iter=100, random_state=seed).fit(
        rows.cpu().numpy()
    )
    return torch.from_numpy(found.cluster_centers_).to(rows.device)


def _sample(rows: Int[Tensor, " row"], most: int, seed: int) -> Int[Tensor, " drawn"]:
    """All of the rows, or a seeded sample of `most`, ascending."""
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:most].sort().values]


def _different(chosen: Int[Tensor, " row"], rows: Float[Tensor, "all d_model"]) -> Int[Tensor, " different"]:
    """The first of each set of equal rows: a duplicate has no finite local density."""
    different, number = torch.unique(rows[chosen].cpu(), dim=0, return_inverse=True)
    first = torch.full((len(different),), len(chosen)).scatter_reduce(0, number, torch.arange(len(chosen)), "amin")
    return chosen[first.sort().values]


def _require_rows(rows: Float[Tensor, "row d_model"], name: str) -> None:
    """Refuse rows that no manifold can be fitted to."""
    n_rows, width = rows.shape
    if width < 2:
        raise ValueError(f"{name} are {width} wide; a manifold needs a width of at least 2")
    if n_rows < FEWEST_ROWS:
        raise ValueError(f"{n_rows} {name} are too few for a calibrated reference; capture at least {FEWEST_ROWS}")
    require_finite(rows, name)
    constant = (rows == rows[:1]).all(0).nonzero().flatten().tolist()
    if len(constant) == width:
        raise ValueError(f"all {n_rows} {name} are equal; give states of different texts")
    if constant:
        named = ", ".join(str(column) for column in constant[:ROWS_NAMED])
        more = f" and {len(constant) - ROWS_NAMED} more" if len(constant) > ROWS_NAMED else ""
        raise ValueError(f"{name} are constant in {len(constant)} columns ({named}{more}); leave these out")
    rms_normalised(rows, name)
