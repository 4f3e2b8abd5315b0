"""Three CSV files, read side by side, checked, joined and summed up: in levels and as a graph.

The same tasks run twice, first in levels, then as a graph, in which each task waits only for its
dependencies. Both must write the same result. The program prints the tasks, their order and what
they did.

Run it with ``python examples/pipeline.py [RESULT.json]``. Without an argument the result goes into
a temporary directory, which is removed at the end.
"""

import asyncio
import csv
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from sdax import (
    AsyncDagTaskProcessor,
    AsyncTask,
    AsyncTaskProcessor,
    RunReport,
    join,
    task,
    task_sync_func,
    task_thread_func,
)

DATA = Path(__file__).parent / "data"
DISCOUNT_PERCENT = {"standard": 0, "plus": 3, "gold": 5}

Row = dict[str, str]
Totals = dict[str, dict[str, int]]
Line = tuple[str, str, int, int, int]  # customer, item, quantity, price, cost


@dataclass
class Sales:
    """The context of one run. Each task writes its own fields."""

    result: Path
    rows: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    customers: dict[str, Row] = field(default_factory=dict[str, Row])
    costs: dict[str, int] = field(default_factory=dict[str, int])
    lines: list[Line] = field(default_factory=list[Line])
    rejected: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    per_customer: Totals = field(default_factory=Totals)
    per_product: Totals = field(default_factory=Totals)

    @property
    def partial_result(self) -> Path:
        return self.result.with_name(self.result.name + ".part")


def read_file(name: str, sales: Sales) -> str:
    """Read a CSV file. This blocks, so it runs in a thread."""
    with (DATA / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        sales.rows[name] = list(csv.DictReader(file))
    return f"{len(sales.rows[name])} rows"


def check_customers(sales: Sales) -> str:
    """Keep the customers to whom one can write, and note the others."""
    rows = sales.rows["customers"]
    sales.customers = {row["customer_id"]: row for row in rows if "@" in row["email"]}
    sales.rejected["customers"] = [row["name"] for row in rows if "@" not in row["email"]]
    return f"{len(sales.customers)} of {len(rows)} are right"


def check_products(sales: Sales) -> str:
    """Keep the products with a cost that can be, and note the others."""
    costs = {row["item"]: int(row["unit_cost_cents"]) for row in sales.rows["products"]}
    sales.costs = {item: cost for item, cost in costs.items() if cost > 0}
    sales.rejected["products"] = [item for item in costs if item not in sales.costs]
    return f"{len(sales.costs)} of {len(costs)} are right"


def enrich_orders(sales: Sales) -> str:
    """Turn each order into customer, item, quantity, price and cost."""
    for row in sales.rows["orders"]:
        quantity = int(row["quantity"])
        price = quantity * int(row["unit_price_cents"])
        cost = quantity * sales.costs[row["item"]]
        sales.lines.append((row["user_id"], row["item"], quantity, price, cost))
    return f"{len(sales.lines)} orders"


def sum_per_product(sales: Sales) -> str:
    """Sum up what was sold of each product, and what is left of its price."""
    totals: Totals = defaultdict(lambda: {"sold": 0, "margin_cents": 0})
    for _, item, quantity, price, cost in sales.lines:
        totals[item]["sold"] += quantity
        totals[item]["margin_cents"] += price - cost
    sales.per_product = dict(sorted(totals.items()))
    return f"{len(totals)} products sold"


def sum_per_customer(sales: Sales) -> str:
    """Sum up what each customer pays, after the discount."""
    totals: Totals = defaultdict(lambda: {"orders": 0, "payable_cents": 0})
    for customer_id, _, _, price, _ in sales.lines:
        customer = sales.customers[customer_id]
        total = totals[customer["name"]]
        total["orders"] += 1
        total["payable_cents"] += price * (100 - DISCOUNT_PERCENT[customer["tier"]]) // 100
    sales.per_customer = dict(sorted(totals.items()))
    return f"{len(totals)} customers bought"


def write_result(sales: Sales) -> str:
    """Write the result beside its place, then move it there: it is never there in part."""
    result = {
        "per_customer": sales.per_customer,
        "per_product": sales.per_product,
        "rejected": dict(sorted(sales.rejected.items())),
    }
    text = json.dumps(result, indent=2, ensure_ascii=False)
    sales.partial_result.write_text(text + "\n", encoding="utf-8")
    sales.partial_result.replace(sales.result)
    return f"{sales.result.stat().st_size} bytes"


def remove_partial_result(sales: Sales) -> None:
    """Leave nothing half-written behind, however the run has ended."""
    sales.partial_result.unlink(missing_ok=True)


def read(name: str) -> AsyncTask[Sales, str]:
    """Make the task that reads a file."""
    return task(f"{name}.csv", pre_execute=task_thread_func(partial(read_file, name), timeout=10))


# A task, its level, and what it depends on: the level is for the first processor alone, the
# dependencies are for the second.
TASKS: list[tuple[AsyncTask[Sales, str], int, tuple[str, ...]]] = [
    (read("customers"), 1, ()),
    (read("products"), 1, ()),
    (read("orders"), 1, ()),
    (task("Customers", pre_execute=task_sync_func(check_customers)), 2, ("customers.csv",)),
    (task("Products", pre_execute=task_sync_func(check_products)), 2, ("products.csv",)),
    (task("Orders", pre_execute=task_sync_func(enrich_orders)), 3, ("orders.csv", "Products")),
    (task("Per product", pre_execute=task_sync_func(sum_per_product)), 4, ("Orders",)),
    (
        task("Per customer", pre_execute=task_sync_func(sum_per_customer)),
        4,
        ("Orders", "Customers"),
    ),
    (join("Totals"), 5, ("Per product", "Per customer")),
    (
        task(
            "Result",
            execute=task_thread_func(write_result, timeout=10),
            post_execute=task_thread_func(remove_partial_result, timeout=10),
        ),
        6,
        ("Totals",),
    ),
]


def in_levels() -> AsyncTaskProcessor[Sales, str]:
    """Build the processor in which all of a level wait for all of the level below."""
    builder = AsyncTaskProcessor[Sales, str].builder()
    for each, level, _ in TASKS:
        builder.add_task(each, level)
    return builder.build()


def as_graph() -> AsyncDagTaskProcessor[Sales, str]:
    """Build the processor in which each task waits for what it needs."""
    builder = AsyncDagTaskProcessor[Sales, str].builder()
    for each, _, depends_on in TASKS:
        builder.add_task(each, depends_on)
    return builder.build()


def show(report: RunReport[str]) -> None:
    """Print what each task did."""
    for name, done in report.items():
        for phase in ("pre_execute", "execute", "post_execute"):
            each = getattr(done, phase)
            if each.attempts:
                print(f"  {name:<15}{phase:<14}{each.state}  {each.value or ''}".rstrip())


def check(sales: Sales) -> None:
    """Compare with the sums of the file itself, without a processor."""
    with (DATA / "orders.csv").open(newline="", encoding="utf-8") as file:
        sold = sum(int(row["quantity"]) for row in csv.DictReader(file))
    if sum(total["sold"] for total in sales.per_product.values()) != sold:
        raise SystemExit("pipeline.py: orders were lost")


def main(result: Path | None, scratch: Path) -> None:
    """Run both, and compare what they wrote."""
    places = (scratch / "levels.json", result or scratch / "graph.json")
    processors = {"In levels": in_levels(), "As a graph": as_graph()}
    for (title, processor), place in zip(processors.items(), places, strict=True):
        sales = Sales(place)
        print(f"{title}: {processor}\n\nwhat ran:")
        show(asyncio.run(processor.process_tasks(sales)))
        check(sales)
        print()
    levels, graph = (place.read_bytes() for place in places)
    if levels != graph:
        raise SystemExit("pipeline.py: levels and graph differ")
    print(f"Both wrote the same {len(graph)} bytes.")


if __name__ == "__main__":
    with TemporaryDirectory() as directory:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else None, Path(directory))
