"""Operators that are functions: those that the model brings, and those whose body ONNX itself defines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx
from onnx import AttributeProto, FunctionProto

from ...compiler.ir import Value
from ...errors import NervureError
from .context import OnnxNode, Unsupported
from .tensors import DTYPES

if TYPE_CHECKING:
    from .walk import Walker

_CODES = {name: code for code, name in DTYPES.items()}


def local(functions: Mapping[tuple[str, str, str], FunctionProto], call: OnnxNode) -> FunctionProto | None:
    """The model's own function that the node calls."""
    overload = call.proto.overload if call.proto is not None else ""
    return functions.get((call.domain, call.op_type, overload)) or functions.get((call.domain, call.op_type, ""))


def expand(walker: Walker, body: FunctionProto, call: OnnxNode) -> list[Value]:
    """Lowers a function's body in the node's place."""
    walker.spend(len(body.node), call.path)
    attrs = {a.name: a for a in body.attribute_proto}
    attrs.update({a.name: a for a in _given(call)})
    versions = {
        **call.scope.opsets,
        **{("" if e.domain == "ai.onnx" else e.domain): e.version for e in body.opset_import},
    }
    scope = call.scope.inside(call.path, opsets=versions, parent=None, attrs=attrs)
    for i, name in enumerate(body.input):
        scope.env[name] = call.optional(i)
    walker.run_nodes(body.node, scope)
    results = []
    for name in body.output[: len(call.outputs)]:
        found = scope.find(name)
        if found is None:
            raise NervureError(f"the function does not compute its output {name!r}", where=call.path)
        results.append(found)
    return results


def _given(call: OnnxNode) -> list[AttributeProto]:
    """The call's attributes with references to an outer call already followed."""
    from .walk import _resolved

    return _resolved(call.proto, call.scope)


def _schema(call: OnnxNode) -> Any:
    try:
        return onnx.defs.get_schema(call.op_type, call.version, call.domain)
    except (onnx.defs.SchemaError, RuntimeError, TypeError):
        return None


def has_standard(call: OnnxNode) -> bool:
    schema = _schema(call)
    return schema is not None and not schema.deprecated and _usable(schema)


def _usable(schema: Any) -> bool:
    return bool(schema.has_function or schema.has_context_dependent_function)


def standard(walker: Walker, call: OnnxNode) -> FunctionProto | None:
    """The body which ONNX's own definition gives the operator, or None."""
    schema = _schema(call)
    if schema is None or not _usable(schema):
        return None
    body = _plain_body(schema, call) if schema.has_function else _built_body(walker, call)
    if body is None:
        return None
    for name, attribute in sorted(schema.attributes.items()):
        if attribute.default_value.type:
            body.attribute_proto.add().CopyFrom(attribute.default_value)
            body.attribute_proto[-1].name = name
    return body


def _plain_body(schema: Any, call: OnnxNode) -> FunctionProto | None:
    versions = [v for v in schema.function_opset_versions if v <= max(call.version, schema.since_version)]
    if not versions:
        return None
    body = FunctionProto()
    body.ParseFromString(schema.get_function_with_opset_version(max(versions)))
    return body


_BUILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import onnx
operator, domain, version = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = onnx.ModelProto.FromString(sys.stdin.buffer.read())
schema = onnx.defs.get_schema(operator, version, domain)
versions = [v for v in schema.context_dependent_function_opset_versions if v <= max(version, schema.since_version)]
types = [i.type.SerializeToString() for i in model.graph.input]
body = schema.get_context_dependent_function_with_opset_version(
    max(versions), model.graph.node[0].SerializeToString(), types)
sys.stdout.buffer.write(body)
"""


def _built_body(walker: Walker, call: OnnxNode) -> FunctionProto | None:
    """A body that depends on the node. ONNX's native builder runs in a process of its own: it may crash."""
    node = onnx.NodeProto()
    node.CopyFrom(call.proto)
    del node.attribute[:]
    node.attribute.extend(_given(call))
    infos = []
    for i, value in enumerate(call.inputs):
        info = onnx.ValueInfoProto(name=f"i{i}")
        if value is not None:
            t = walker.context.type(value)
            info = onnx.helper.make_tensor_value_info(f"i{i}", _CODES[t.dtype], t.dims)
        infos.append(info)
    model = onnx.ModelProto(graph=onnx.GraphProto(node=[node], input=infos))
    arguments = [sys.executable, "-I", "-c", _BUILD, call.op_type, call.domain, str(call.version)]
    try:
        done = subprocess.run(arguments, input=model.SerializeToString(), capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unsupported(f"its definition could not be expanded ({type(error).__name__})") from None
    if done.returncode != 0 or not done.stdout:
        raise Unsupported("its definition could not be expanded for these inputs")
    return FunctionProto.FromString(done.stdout)
