"""The extension that Bazel's own modules ask buildozer for, with nothing in its repository."""

def _empty_repository(context):
    context.file("BUILD.bazel", "")

_empty = repository_rule(implementation = _empty_repository)

def _extension(_context):
    _empty(name = "buildozer_binary")

buildozer_binary = module_extension(implementation = _extension)
