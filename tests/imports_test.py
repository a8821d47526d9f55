"""The package's conventions that code can break unseen.

Modules import from above alone, as CONTRIBUTING.md has them in order, and
public functions say the types of what they take and give, and are documented.
"""

import ast
from collections.abc import Iterable
import pathlib
import re

import fractal_jax

PACKAGE = pathlib.Path(fractal_jax.__file__).parent
TEXT = (PACKAGE.parent / 'CONTRIBUTING.md').read_text()
LINKS = ('configs', 'releases')  # to folders beside the package
MODULES = {
  path.relative_to(PACKAGE).as_posix()
  for path in PACKAGE.rglob('*.py')
  if path.relative_to(PACKAGE).parts[0] not in LINKS
} - {'__init__.py'}


def table() -> dict[str, int]:
  """The row of each file and folder that the table names."""
  text = TEXT.partition('\n## The way through the code\n')[2]
  rows = re.findall(r'^\| [^|]+ \| (`[^|]+) \|', text, re.M)
  return {
    name: row
    for row, cell in enumerate(rows)
    for name in re.findall('`([^`]+)`', cell)
  }


def exceptions() -> set[tuple[str, str]]:
  return set(re.findall(r'^\* `([^`]+)` imports `([^`]+)`: ', TEXT, re.M))


def row(module: str, rows: dict[str, int]) -> int:
  """That of the module itself, or of its folder."""
  return rows.get(module, rows.get(module.partition('/')[0] + '/', -1))


def imported(code: ast.AST) -> set[str]:
  """The modules that code imports, wherever it does, types alone aside."""
  types = {
    id(x)
    for node in ast.walk(code)
    if isinstance(node, ast.If)
    and getattr(node.test, 'id', '') == 'TYPE_CHECKING'
    for x in ast.walk(node)
  }
  names = []
  for node in ast.walk(code):
    if id(node) in types:
      continue
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
      names += [f'{node.module}.{alias.name}' for alias in node.names]
  files = [name.removeprefix('fractal_jax.').split('.') for name in names]
  return {
    file
    for parts in files
    for file in ('/'.join(parts) + '.py', '/'.join(parts[:-1]) + '.py')
    if file in MODULES
  }


def test_every_module_is_in_the_table_and_the_table_in_the_package():
  rows = table()
  assert len(set(rows.values())) > 10
  assert [x for x in MODULES if row(x, rows) < 0] == []
  assert [x for x in rows if not (PACKAGE / x).exists()] == []


def test_modules_import_from_above():
  rows = table()
  upwards = {
    (module, other)
    for module in MODULES
    for other in imported(ast.parse((PACKAGE / module).read_text()))
    if row(other, rows) > row(module, rows)
  }
  assert upwards == exceptions()


def test_imports_are_found():
  code = """
if TYPE_CHECKING:
  from fractal_jax import api
import fractal_jax.config
from fractal_jax import sharding
def late():
  from fractal_jax.models.kinds import KINDS
  import numpy, sharding
"""
  assert imported(ast.parse(code)) == {
    'config.py',
    'sharding.py',
    'models/kinds.py',
  }


def untyped(code: ast.AST) -> list[str]:
  """The public functions and methods that lack a type."""
  found = []
  for node in ast.iter_child_nodes(code):
    public = not getattr(node, 'name', '_').startswith('_')
    if isinstance(node, ast.ClassDef) and public:
      found += [f'{node.name}.{x}' for x in untyped(node)]
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      arguments = node.args.posonlyargs + node.args.args
      own = isinstance(code, ast.ClassDef) and 'staticmethod' not in {
        x.id for x in node.decorator_list if isinstance(x, ast.Name)
      }
      given = arguments[own:] + node.args.kwonlyargs
      typed = all(x.annotation for x in given)
      makes = node.name == '__init__'  # and gives nothing
      if (makes or public) and not (typed and (makes or node.returns)):
        found.append(node.name)
  return found


def test_public_functions_say_their_types():
  assert {
    module: names
    for module in MODULES
    if (names := untyped(ast.parse((PACKAGE / module).read_text())))
  } == {}


def test_what_lacks_types_is_found():
  code = """
def a(x, *, y: int) -> int: ...
def b(x: int): ...
def _c(x): ...
def d(x: int, *rest) -> int: ...
async def h(x): ...
class E:
  def __init__(self, x): ...
  @staticmethod
  def f(x) -> int: ...
  def g(self, x: int) -> None: ...
"""
  assert untyped(ast.parse(code)) == ['a', 'b', 'h', 'E.__init__', 'E.f']


# What flax, clu and absl document.
THEIRS = {'setup', 'write_scalars', 'flush', 'close', 'flag_type', 'parse'}


def documented(code: ast.AST) -> bool:
  return ast.get_docstring(code) is not None


def promised(codes: Iterable[ast.Module]) -> set[str]:
  """The methods that an interface documents for all that implement it."""
  return {
    x.name
    for code in codes
    for node in ast.walk(code)
    if isinstance(node, ast.ClassDef)
    and {ast.unparse(x) for x in node.bases} & {'Protocol', 'abc.ABC'}
    for x in node.body
    if isinstance(x, ast.FunctionDef) and documented(x)
  }


def undocumented(code: ast.AST, known: set[str]) -> list[str]:
  """What is public and has no docstring, methods of `known` names aside."""
  found = []
  for node in ast.iter_child_nodes(code):
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if not isinstance(node, kinds) or node.name.startswith('_'):
      continue
    method = isinstance(code, ast.ClassDef) and node.name in known
    if not method and not documented(node):
      found.append(node.name)
    if isinstance(node, ast.ClassDef):
      found += [f'{node.name}.{x}' for x in undocumented(node, known)]
  return found


def test_all_that_is_public_is_documented():
  codes = {m: ast.parse((PACKAGE / m).read_text()) for m in MODULES}
  known = promised(codes.values()) | THEIRS
  assert {
    module: names
    for module, code in codes.items()
    if (names := undocumented(code, known))
  } == {}


def test_what_lacks_a_docstring_is_found():
  code = ast.parse("""
class A(Protocol):
  'An interface.'
  def f(self): 'Says what f gives.'
  def g(self): ...
class B(A):
  'Implements it.'
  def f(self): ...
  def g(self): ...
  def _h(self): ...
def f(): ...
async def h(): ...
""")
  assert promised([code]) == {'f'}
  assert undocumented(code, {'f'}) == ['A.g', 'B.g', 'f', 'h']
