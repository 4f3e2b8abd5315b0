"""Small changes of Python source that a test should notice, for `tests/mutants.py`.

Each change is one of these:

- a condition is always true, or always false (which is stronger than to negate it, or to swap the
  branches of an `if`), and a `not` is dropped;
- an operand of `and` and `or` is dropped (stronger than to swap the two);
- a comparison includes its limit or not, or is the contrary;
- a number is one more or one less, `True` is `False`, and `+` is `-`;
- a statement does nothing, a `return` returns `None`, a `break` or `continue` does neither;
- a `finally` does nothing, and an `except` raises what it has caught;
- a call has one keyword argument less.

Annotations, docstrings, decorators, assertions and the text of messages stay as they are. So does
the only assignment of a local variable, because every test would fail without it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

CONTRARY: dict[type, tuple[str, str]] = {
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Lt: ("<", ">="),
    ast.LtE: ("<=", ">"),
    ast.Gt: (">", "<="),
    ast.GtE: (">=", "<"),
}
LIMIT: dict[type, tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
}
ARITHMETIC: dict[type, tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
REMOVED = (ast.Expr, ast.AugAssign, ast.Raise, ast.Delete, ast.Continue, ast.Break)
SWITCHES = ("TYPE_CHECKING", "version_info", "platform")  # conditions of other Pythons
Key = tuple[str, str, str, str]  # module, function, before and after: no line, which changes
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Mutation:
    """One change of one module."""

    module: str  # its path
    name: str  # of the function, with #2 for the second such change in it
    line: int
    run_lines: frozenset[int]  # a test that runs one of them may notice
    before: str  # the changed lines as one
    after: str
    changed: bytes  # the whole module

    @property
    def key(self) -> Key:
        return self.module, self.name, self.before, self.after

    @property
    def is_python(self) -> bool:
        try:
            compile(self.changed, self.module, "exec", dont_inherit=True)
        except SyntaxError:
            return False
        return True


def mutations_of(module: str, source: str) -> list[Mutation]:
    """Return all changes of a module's source, in the order of its lines."""
    found = _Finder(source)
    found.visit(ast.parse(source))
    mutations: list[Mutation] = []
    times: Counter[Key] = Counter()
    for change in sorted(found.changes, key=lambda change: (change.start, change.new)):
        mutation = change.applied(module, found.text)
        times[mutation.key] += 1
        if times[mutation.key] > 1:
            mutation = replace(mutation, name=f"{mutation.name} #{times[mutation.key]}")
        mutations.append(mutation)
    return mutations


@dataclass(frozen=True)
class _Change:
    """Bytes of a module, and what to write instead."""

    name: str
    start: int
    end: int
    new: str
    run_lines: frozenset[int]

    def applied(self, module: str, text: bytes) -> Mutation:
        changed = text[: self.start] + self.new.encode() + text[self.end :]
        begin = text.rfind(b"\n", 0, self.start) + 1
        end = text.find(b"\n", self.end)
        return Mutation(
            module,
            self.name,
            text.count(b"\n", 0, self.start) + 1,
            self.run_lines,
            _as_one_line(text[begin:end]),
            _as_one_line(changed[begin : end + len(changed) - len(text)]),
            changed,
        )


def _as_one_line(text: bytes) -> str:
    return " ".join(line.strip() for line in text.decode().splitlines()).strip()


class _Finder(ast.NodeVisitor):
    """Collects the changes of a module."""

    def __init__(self, source: str) -> None:
        self.text = source.encode()
        self.changes: dict[_Change, None] = {}  # each once, in order
        self._begins = [0]  # of each line
        for line in self.text.splitlines(keepends=True):
            self._begins.append(self._begins[-1] + len(line))
        self._names: list[str] = []
        self._stored: list[Counter[str]] = []  # how often each name is assigned, by function
        self._lines: frozenset[int] = frozenset()

    def span(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.expr | ast.stmt | ast.keyword | ast.arg)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self._begins[node.lineno - 1] + node.col_offset,
            self._begins[node.end_lineno - 1] + node.end_col_offset,
        )

    def change(self, start: int, end: int, new: str) -> None:
        name = ".".join(self._names) or "the module"
        self.changes.setdefault(_Change(name, start, end, new, self._lines))

    def instead(self, node: ast.AST, new: str) -> None:
        self.change(*self.span(node), new)

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> None:
        """Change an operator, which stands between two nodes."""
        start, end = self.span(left)[1], self.span(right)[0]
        at = self.text.find(old.encode(), start, end)
        if at >= 0:
            self.change(at, at + len(old), new)

    def original(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.text[start:end].decode()

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            self._lines = frozenset(_lines_of(node))
            if self._names and isinstance(node, REMOVED) and not _is_docstring(node):
                self.instead(node, "pass")
        super().visit(node)

    # Definitions

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._names.append(node.name)
        self.visit_body(node.body)
        self._names.pop()

    def visit_function(self, node: Function) -> None:
        if any(ast.unparse(each).endswith("overload") for each in node.decorator_list):
            return
        self._names.append(node.name)
        # Defaults are made at import, and used when the function runs.
        self._lines = frozenset(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self._stored.append(_stored_in(node))
        self.visit_body(node.body)
        self._stored.pop()
        self._names.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_function(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.body)

    def visit_body(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.visit(statement)

    # Statements

    def visit_Expr(self, node: ast.Expr) -> None:
        if not _is_docstring(node):
            self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if self._stored and not self._first(node.targets):
            self.instead(node, "pass")
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            if self._stored and not self._first([node.target]):
                self.instead(node, "pass")
            self.visit(node.value)

    def _first(self, targets: list[ast.expr]) -> bool:
        """Return True if the targets are local variables that are assigned here alone."""
        names = [each for target in targets for each in ast.walk(target)]
        return all(
            self._stored[-1][each.id] == 1
            for each in names
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
        ) and not any(
            isinstance(each, ast.Attribute | ast.Subscript) and isinstance(each.ctx, ast.Store)
            for each in names
        )

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        operator = ARITHMETIC.get(type(node.op))
        if operator is not None:
            self.between(node.target, node.value, operator[0] + "=", operator[1] + "=")
        self.visit(node.value)

    def visit_Assert(self, node: ast.Assert) -> None:
        """Leave it: it tells type checkers what is so anyway."""

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self.instead(node, "pass")
        else:
            self.instead(node, "return None")
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if not any(switch in self.original(node.test) for switch in SWITCHES):
            self.condition(node.test)
            self.visit_body(node.body)
        self.visit_body(node.orelse)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self.condition(node.test)
        self.visit_body(node.body)
        self.visit_body(node.orelse)

    def visit_Try(self, node: ast.Try) -> None:
        self.visit_clauses(node)

    def visit_TryStar(self, node: ast.TryStar) -> None:
        self.visit_clauses(node)

    def visit_clauses(self, node: ast.Try | ast.TryStar) -> None:
        self.visit_body(node.body)
        for handler in node.handlers:
            first, last = handler.body[0], handler.body[-1]
            if not isinstance(first, ast.Raise):
                self._lines = frozenset(_lines_of(first))
                self.change(self.span(first)[0], self.span(last)[1], "raise")
            self.visit_body(handler.body)
        self.visit_body(node.orelse)
        if node.finalbody:
            first, last = node.finalbody[0], node.finalbody[-1]
            self._lines = frozenset(_lines_of(first))
            self.change(self.span(first)[0], self.span(last)[1], "pass")
            self.visit_body(node.finalbody)

    # Expressions

    def condition(self, test: ast.expr) -> None:
        self.instead(test, "True")
        self.instead(test, "False")
        if isinstance(test, ast.Compare):
            self.limits(test)
            self.generic_visit(test)
        elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            self.visit(test.operand)
        elif isinstance(test, ast.BoolOp):
            self.operands(test)
        else:
            self.visit(test)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test)
        self.visit(node.body)
        self.visit(node.orelse)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.visit(node.iter)
        for test in node.ifs:
            self.condition(test)

    def visit_Compare(self, node: ast.Compare) -> None:
        self.limits(node)
        self.swapped(node, CONTRARY)
        self.generic_visit(node)

    def limits(self, node: ast.Compare) -> None:
        self.swapped(node, LIMIT)

    def swapped(self, node: ast.Compare, table: Mapping[type, tuple[str, str]]) -> None:
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            if type(operator) in table:
                self.between(left, right, *table[type(operator)])
            left = right

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.operands(node)

    def operands(self, node: ast.BoolOp) -> None:
        for dropped, value in enumerate(node.values):
            if dropped:
                self.change(self.end_of(node.values[dropped - 1]), self.end_of(value), "")
            else:
                self.change(self.begin_of(value), self.begin_of(node.values[1]), "")
            if isinstance(value, ast.Compare):
                self.limits(value)
                self.generic_visit(value)
            else:
                self.visit(value)

    def begin_of(self, node: ast.expr) -> int:
        """Return where an expression begins, with its parentheses."""
        start, end = self.span(node)
        while self.text[start - 1 : start] == b"(" and self.text[end : end + 1] == b")":
            start, end = start - 1, end + 1
        return start

    def end_of(self, node: ast.expr) -> int:
        start, end = self.span(node)
        return end + start - self.begin_of(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.instead(node, self.original(node.operand))
        self.visit(node.operand)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = ast.JoinedStr | ast.Constant
        if not any(
            isinstance(side, texts) and not isinstance(getattr(side, "value", ""), int | float)
            for side in (node.left, node.right)
        ):
            operator = ARITHMETIC.get(type(node.op))
            if operator is not None:
                self.between(node.left, node.right, *operator)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.instead(node, str(not node.value))
        elif isinstance(node.value, int | float):
            self.instead(node, str(node.value + 1))
            self.instead(node, str(node.value - 1))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave the text of messages."""

    def visit_Call(self, node: ast.Call) -> None:
        before: ast.expr | ast.keyword = node.args[-1] if node.args else node.func
        for keyword in node.keywords:
            if keyword.arg is not None:
                start, end = self.span(keyword)
                while self.text[start - 1 : start].isspace():
                    start -= 1
                if self.text[start - 1 : start] == b"," and before is not node.func:
                    self.change(start - 1, end, "")
                else:
                    rest = self.text[end:].lstrip()
                    comma = self.text.index(b",", end) + 1 if rest[:1] == b"," else end
                    self.change(start, comma, "")
            before = keyword
        self.generic_visit(node)


def _is_docstring(node: ast.stmt) -> bool:
    """Return True for a docstring, and for `...`."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _lines_of(node: ast.stmt) -> Iterable[int]:
    """Return the lines of a statement, or of its head if it has a body."""
    if isinstance(node, ast.If | ast.While):
        return range(node.lineno, (node.test.end_lineno or 0) + 1)
    body = getattr(node, "body", None)
    if body:
        return range(node.lineno, max(node.lineno + 1, body[0].lineno))
    return range(node.lineno, (node.end_lineno or 0) + 1)


def _stored_in(function: Function) -> Counter[str]:
    names = Counter(
        each.id
        for each in ast.walk(function)
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    )
    names.update(each.arg for each in ast.walk(function.args) if isinstance(each, ast.arg))
    for each in ast.walk(function):
        if isinstance(each, ast.Global | ast.Nonlocal):
            names.update(each.names)
    return names


@dataclass(frozen=True)
class Equivalent:
    """A change that no test can notice, and why."""

    key: Key
    reason: str


def equivalents_in(path: Path) -> Iterator[Equivalent]:
    """Read a list of changes that no test can notice.

    Each entry has four lines: `MODULE FUNCTION`, `- BEFORE`, `+ AFTER` and the reason. Empty lines
    separate them. Raises `ValueError` for anything else.
    """
    for number, block in enumerate(path.read_text().split("\n\n"), 1):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if not lines:
            continue
        if len(lines) < 4 or lines[1][:2] != "- " or lines[2][:2] != "+ ":
            raise ValueError(f"{path}: entry {number} needs a place, -, + and a reason: {lines}")
        module, _, name = lines[0].partition(" ")
        yield Equivalent((module, name, lines[1][2:], lines[2][2:]), " ".join(lines[3:]))
