"""The main figure: effective sample size against width."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

_PANELS = (
    ("ess_per_grad", "per gradient evaluation"),
    ("ess_per_second", "per second of sampling"),
)


def plot_ess_by_width(table: xr.Dataset) -> Figure:
    """Plot ESS per gradient and per second against width, log-log, one line per method.

    Solid lines are the minimum over predictions and projections, dashed ones the median. Cells without an ESS are left
    out; an ESS of 0 is drawn as a cross at the foot of the panel.

    Args:
      table: what `ess_by_width` returned.

    Returns:
      A matplotlib figure, not shown and not saved.

    Raises:
      TypeError: if `table` has not the figures it needs.
    """
    if not isinstance(table, xr.Dataset) or "ess_per_grad_min" not in table:
        raise TypeError("`plot_ess_by_width`: table must be what ess_by_width(...) returns")
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    widths = table.width.values
    for axis, (name, title) in zip(axes, _PANELS, strict=True):
        for i, method in enumerate(table.method.values):
            least, middle = (table[f"{name}_{which}"].sel({"method": method}).values for which in ("min", "median"))
            color = f"C{i % 10}"
            axis.plot(widths, np.where(least > 0, least, np.nan), "o-", color=color, label=str(method))
            axis.plot(widths, np.where(middle > 0, middle, np.nan), "--", color=color, alpha=0.6, linewidth=1)
            for stuck in widths[least == 0]:
                axis.plot(stuck, 0, "x", color=color, transform=axis.get_xaxis_transform(), clip_on=False)
        drawn = np.nanmax(table[f"{name}_median"].values, initial=0) > 0
        axis.set(xscale="log", yscale="log" if drawn else "linear", xlabel="width", title=f"ESS {title}")
        axis.set_xlim(widths.min() / 1.3, widths.max() * 1.3)
        axis.set_xticks(widths, [str(width) for width in widths])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("bulk ESS: minimum (solid), median (dashed)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    figure.suptitle(
        f"{table.attrs.get('n', '?')} training inputs, {table.attrs.get('likelihood', '')}, "
        f"{table.attrs.get('precision', '')}, {table.attrs.get('device', '')}",
        fontsize=9,
    )
    return figure
