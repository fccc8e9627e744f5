"""Store paths that actions see at `/nix/store`, and tools that lie in them.

A worker shows an action the store paths that its platform property `nix-closure` names, with all that they refer to,
and nothing else of any store. No worker has them installed: they come from a Nix cache of the server.
"""

_STORE = "/nix/store/"
_HASH_LENGTH = 32

# What workers are unless told otherwise. As labels, because the names of this module are not its users'.
LINUX_X86_64 = [Label("@platforms//os:linux"), Label("@platforms//cpu:x86_64")]

def check_store_path(path):
    """Fails unless this is a path directly in the Nix store.

    Args:
      path: such as `/nix/store/<hash>-<name>`.

    Returns:
      The path.
    """
    name = path.removeprefix(_STORE)
    if name == path or "/" in name or name[_HASH_LENGTH:_HASH_LENGTH + 1] != "-" or len(name) < _HASH_LENGTH + 2:
        fail("%r is no store path: write /nix/store/<hash>-<name>, as `nix store add-path` prints it" % path)
    return path

def nix_closure(*store_paths):
    """What `exec_properties` of a target or a platform must say for its actions to see store paths.

    Args:
      *store_paths: full paths; what they refer to comes along.

    Returns:
      A dictionary; add your own properties with `|`.
    """
    return {"nix-closure": " ".join([check_store_path(path) for path in store_paths])}

def nix_platform(name, store_paths, constraint_values = LINUX_X86_64, exec_properties = {}, **kwargs):
    """An execution platform whose actions all see the same store paths.

    Args:
      name: of the platform.
      store_paths: what its actions see.
      constraint_values: what it is: Linux on x86-64, unless told.
      exec_properties: what else its actions ask of a worker.
      **kwargs: what every target takes.
    """
    native.platform(
        name = name,
        constraint_values = constraint_values,
        exec_properties = nix_closure(*store_paths) | {"OSFamily": "linux"} | exec_properties,
        **kwargs
    )

def shell_quoted(word):
    """Quotes a word for `/bin/sh`.

    Args:
      word: any text.

    Returns:
      What the shell reads as that one word.
    """
    return "'" + word.replace("'", "'\\''") + "'"

def _nix_tool_impl(ctx):
    program = check_store_path(ctx.attr.store_path)
    if ctx.attr.executable:
        program += "/" + ctx.attr.executable
    script = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.write(script, "#!/bin/sh\nexec %s \"$@\"\n" % shell_quoted(program), is_executable = True)
    return [DefaultInfo(executable = script, runfiles = ctx.runfiles([script]))]

nix_tool = rule(
    implementation = _nix_tool_impl,
    doc = """A program of a store path, to be run by actions: among the `tools` of a `genrule`, or an `executable` of
`ctx.actions.run`. Bazel lets no tool say what its users need, so these must say `exec_properties = nix_closure(…)`, or run
on a `nix_platform`.""",
    attrs = {
        "store_path": attr.string(mandatory = True, doc = "The full store path."),
        "executable": attr.string(doc = "The program below it, such as `bin/tool`; empty if the path itself is the program."),
    },
    executable = True,
)
