"""Which programs may run at all: an allow-list over the syntax tree, checked before any child process starts."""

from __future__ import annotations

import ast

MAX_SOURCE = 10_000


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MATH_NAMES = _words(
    "acos asin atan atan2 ceil comb cos cosh degrees dist e exp fabs factorial floor fmod fsum gcd hypot inf isclose"
    " isqrt lcm log log10 log1p log2 perm pi pow prod radians sin sinh sqrt tan tanh tau trunc"
)
CALLS = _words(
    "abs all any bool dict divmod enumerate float int len list max min pow print range reversed round set sorted str"
    " sum tuple zip"
)
_KEYWORDS = frozenset({"sep", "end", "reverse", "ndigits", "start", "default", "strict"})
_NODES = (
    ast.Module, ast.Expr, ast.Assign, ast.AugAssign, ast.For, ast.While, ast.If, ast.Break, ast.Continue, ast.Pass,
    ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Import, ast.ImportFrom, ast.alias,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.keyword, ast.Attribute, ast.Subscript,
    ast.Slice, ast.Constant, ast.Name, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.JoinedStr, ast.FormattedValue,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.expr_context,
    ast.boolop, ast.cmpop, ast.unaryop,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr, ast.BitXor, ast.RShift,
)  # fmt: skip
# Names that the child process puts beside the program's own.
POWER = "_power"


class Refused(Exception):
    """The program uses something that is not allowed."""


def check_program(source: str) -> str | None:
    """Why a program may not run, or None when it may."""
    try:
        prepare(source)
    except Refused as refusal:
        return str(refusal)
    return None


def prepare(source: str) -> str:
    """The program as the child runs it: checked, imports resolved, powers guarded. Raises ``Refused``."""
    if len(source) > MAX_SOURCE:
        raise Refused(f"longer than {MAX_SOURCE} characters")
    try:
        source.encode()
        tree = ast.parse(source)
        _check(tree)
        guarded = ast.fix_missing_locations(_Guard().visit(tree))
        text = ast.unparse(guarded)
        # What was checked is a tree, and what runs is a text. Some trees are written as the text of another one:
        # an escaped brace in the format of an f-string becomes an expression that nobody has looked at.
        if ast.dump(ast.parse(text)) != ast.dump(guarded):
            raise Refused("it cannot be written out as it was checked")
        return text
    except SyntaxError as error:
        raise Refused(f"not Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"cannot be read: {type(error).__name__}") from None


def _check(tree: ast.Module) -> None:
    nodes = list(ast.walk(tree))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    imported = {name.name for node in nodes if isinstance(node, ast.ImportFrom) for name in node.names}
    known = defined | imported | CALLS | {node.arg for node in nodes if isinstance(node, ast.arg)}
    known |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    if any(isinstance(node, ast.Import) for node in nodes):
        known.add("math")
    inside = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if not isinstance(node, _NODES):
            raise Refused(f"{type(node).__name__} is not allowed")
        _check_names(node, known, inside)
        if isinstance(node, ast.Call):
            _check_call(node, defined | imported | CALLS)


def _check_names(node: ast.AST, known: set[str], inside: set[int]) -> None:
    if isinstance(node, ast.Import) and [(name.name, name.asname) for name in node.names] != [("math", None)]:
        raise Refused("only math may be imported, under its own name")
    if isinstance(node, ast.ImportFrom) and not _from_math(node):
        raise Refused("only known names of math may be imported, under their own names")
    if isinstance(node, ast.Attribute):
        if not (isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr in MATH_NAMES):
            raise Refused(f"the attribute .{node.attr} is not allowed")
        if not isinstance(node.ctx, ast.Load):
            raise Refused("attributes may not be set")
    if isinstance(node, ast.Name):
        if node.id not in known or (node.id == "math" and id(node) not in inside):
            raise Refused(f"the name {node.id!r} is not allowed")
        _check_new(node.id, stored=not isinstance(node.ctx, ast.Load))
    if isinstance(node, ast.FunctionDef):
        if node.decorator_list or getattr(node, "type_params", None):
            raise Refused("decorators and type parameters are not allowed")
        _check_new(node.name, stored=True)
    if isinstance(node, ast.arg):
        _check_new(node.arg, stored=True)


def _from_math(node: ast.ImportFrom) -> bool:
    return node.module == "math" and not node.level and all(n.name in MATH_NAMES and not n.asname for n in node.names)


def _check_new(name: str, *, stored: bool) -> None:
    if "__" in name or name == POWER:
        raise Refused(f"the name {name!r} is not allowed")
    if stored and name == "math":
        raise Refused("math may not be replaced")


def _check_call(node: ast.Call, callable_names: set[str]) -> None:
    if isinstance(node.func, ast.Name) and node.func.id not in callable_names:
        raise Refused(f"calling {node.func.id!r} is not allowed")
    if not isinstance(node.func, ast.Name | ast.Attribute):
        raise Refused("only named functions may be called")
    for keyword in node.keywords:
        own = isinstance(node.func, ast.Name) and node.func.id not in CALLS
        if keyword.arg is None or not (own or keyword.arg in _KEYWORDS):
            raise Refused(f"the argument {keyword.arg or '**'!r} is not allowed")


class _Guard(ast.NodeTransformer):
    """Powers go through a function that knows how large a result may be; imports become plain assignments."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return self._power(node.left, node.right) if isinstance(node.op, ast.Pow) else node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Pow):
            return node
        if not isinstance(node.target, ast.Name):
            raise Refused("**= is allowed on plain names only")
        return ast.Assign([node.target], self._power(ast.Name(node.target.id, ast.Load()), node.value))

    def visit_Import(self, node: ast.Import) -> ast.AST:
        return ast.Pass()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> list[ast.AST]:
        math = ast.Name("math", ast.Load())
        return [
            ast.Assign([ast.Name(n.name, ast.Store())], ast.Attribute(math, n.name, ast.Load())) for n in node.names
        ]

    @staticmethod
    def _power(base: ast.expr, exponent: ast.expr) -> ast.Call:
        return ast.Call(ast.Name(POWER, ast.Load()), [base, exponent], [])
