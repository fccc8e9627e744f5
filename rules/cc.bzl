"""C and C++ toolchains out of store paths."""

load("@bazel_tools//tools/build_defs/cc:action_names.bzl", "ACTION_NAMES")
load(
    "@bazel_tools//tools/cpp:cc_toolchain_config_lib.bzl",
    "action_config",
    "feature",
    "flag_group",
    "flag_set",
    "tool",
)
load(":nix.bzl", "LINUX_X86_64", "check_store_path", "nix_platform", "shell_quoted")

_C_ACTIONS = [
    ACTION_NAMES.assemble,
    ACTION_NAMES.c_compile,
    ACTION_NAMES.preprocess_assemble,
]
_CXX_ACTIONS = [
    ACTION_NAMES.cpp_compile,
    ACTION_NAMES.cpp_header_parsing,
    ACTION_NAMES.linkstamp_compile,
]
_COMPILE_ACTIONS = _C_ACTIONS + _CXX_ACTIONS
_LINK_ACTIONS = [
    ACTION_NAMES.cpp_link_dynamic_library,
    ACTION_NAMES.cpp_link_executable,
    ACTION_NAMES.cpp_link_nodeps_dynamic_library,
]

# Features that Bazel itself defines, and that make the command lines. Not among them: `strip_debug_symbols`, for which Zig
# would build its C library once more.
_COMPILE_FEATURES = [
    "user_compile_flags",
    "sysroot",
    "unfiltered_compile_flags",
    "compiler_input_flags",
    "compiler_output_flags",
]
_LINK_FEATURES = [
    "linkstamps",
    "output_execpath_flags",
    "runtime_library_search_directories",
    "library_search_directories",
    "libraries_to_link",
    "user_link_flags",
    "linker_param_file",
    "fission_support",
    "sysroot",
]
_OWN_LINK_FEATURES = {
    ACTION_NAMES.cpp_link_dynamic_library: ["shared_flag"],
    ACTION_NAMES.cpp_link_executable: ["force_pic_flags"],
    ACTION_NAMES.cpp_link_nodeps_dynamic_library: ["shared_flag"],
}

# What goes before every program of Zig: it compiles its C library when it first links, and can keep it in `/tmp` alone,
# which is each action's own. Where it is in a store path already, a link takes that.
_ZIG_PRELUDE = """\
export ZIG_GLOBAL_CACHE_DIR=/tmp/zig-global ZIG_LOCAL_CACHE_DIR=/tmp/zig-local
"""
_ZIG_CACHE_PRELUDE = """\
case " $* " in *" -c "*) ;; *)
    export ZIG_GLOBAL_CACHE_DIR=/tmp/zig-linking
    test -e /tmp/zig-linking || { cp -r %s /tmp/zig-linking && chmod -R u+w /tmp/zig-linking; } ;;
esac
"""

def _programs_impl(ctx):
    written = []
    for name, words in ctx.attr.programs.items():
        script = ctx.actions.declare_file("%s/%s" % (ctx.label.name, name))
        program = check_store_path(ctx.attr.store_path) + "/" + words[0]
        line = "exec %s \"$@\"\n" % " ".join([shell_quoted(word) for word in [program] + words[1:]])
        ctx.actions.write(script, "#!/bin/sh\n" + ctx.attr.prelude + line, is_executable = True)
        written.append(script)
    groups = {script.basename: depset([script]) for script in written}
    return [DefaultInfo(files = depset(written)), OutputGroupInfo(**groups)]

# Scripts that run programs of a store path; each is an output group of its own name.
_programs = rule(
    implementation = _programs_impl,
    attrs = {
        "prelude": attr.string(),
        "programs": attr.string_list_dict(mandatory = True),
        "store_path": attr.string(mandatory = True),
    },
)

def _program(ctx, name):
    return getattr(ctx.attr.programs[OutputGroupInfo], name).to_list()[0]

def _flags(name, actions, flags):
    sets = [flag_set(actions = actions, flag_groups = [flag_group(flags = flags)])] if flags else []
    return feature(name = name, enabled = True, flag_sets = sets)

def _action(name, program, implies):
    return action_config(action_name = name, enabled = True, tools = [program], implies = implies)

def _config_impl(ctx):
    c, cxx, archive = [tool(tool = _program(ctx, name)) for name in ["c", "cxx", "archive"]]
    actions = [_action(name, c, _COMPILE_FEATURES) for name in _C_ACTIONS]
    actions += [_action(name, cxx, _COMPILE_FEATURES) for name in _CXX_ACTIONS]
    actions += [_action(name, cxx, _OWN_LINK_FEATURES[name] + _LINK_FEATURES) for name in _LINK_ACTIONS]
    actions.append(_action(ACTION_NAMES.cpp_link_static_library, archive, ["archiver_flags", "linker_param_file"]))
    return cc_common.create_cc_toolchain_config_info(
        ctx = ctx,
        toolchain_identifier = ctx.label.name,
        target_system_name = "linux",
        target_cpu = ctx.attr.cpu,
        target_libc = ctx.attr.libc,
        compiler = ctx.attr.compiler,
        abi_version = "local",
        abi_libc_version = "local",
        action_configs = actions,
        features = [
            _flags("default_compile_flags", _COMPILE_ACTIONS, ctx.attr.compile_flags),
            _flags("default_link_flags", _LINK_ACTIONS, ctx.attr.link_flags),
            feature(name = "supports_pic", enabled = True),
        ],
        # Whatever an action finds there, its platform named, or it came along with that.
        cxx_builtin_include_directories = ["/nix/store"],
    )

_config = rule(
    implementation = _config_impl,
    attrs = {
        "compile_flags": attr.string_list(),
        "compiler": attr.string(mandatory = True),
        "cpu": attr.string(mandatory = True),
        "libc": attr.string(mandatory = True),
        "link_flags": attr.string_list(),
        # As `cc_toolchain` takes its files: what a rule runs is made for where it runs.
        "programs": attr.label(mandatory = True, cfg = "exec"),
    },
    provides = [CcToolchainConfigInfo],
)

def gf_nix_cc_toolchain(
        name,
        store_path,
        c = ["bin/gcc"],
        cxx = ["bin/g++"],
        archive = ["bin/ar"],
        more_store_paths = [],
        compile_flags = [],
        link_flags = [],
        prelude = "",
        compiler = "gcc",
        cpu = "k8",
        libc = "glibc",
        constraint_values = LINUX_X86_64,
        exec_properties = {}):
    """A C and C++ toolchain whose programs lie in a store path.

    It makes two targets that others name: `<name>_toolchain`, for `--extra_toolchains`, and `<name>_platform`, for
    `--extra_execution_platforms`. Actions of the toolchain run on that platform alone, so only they ask for the path.

    Args:
      name: what the targets begin with.
      store_path: the full store path of the programs.
      c: the program that compiles C, below the store path, and its first arguments.
      cxx: the program that compiles C++, and that links.
      archive: the program that makes static libraries, and that takes `rcsD` as `ar` does.
      more_store_paths: store paths that the first does not refer to, such as a C library.
      compile_flags: flags of every compilation.
      link_flags: flags of every link.
      prelude: lines of shell that are run before each program.
      compiler: what `--compiler` and `config_setting` call it.
      cpu: what `--cpu` calls the processor that it compiles for.
      libc: the C library, for the record.
      constraint_values: what workers are, and what they compile for: Linux on x86-64, unless told.
      exec_properties: what else actions of the toolchain ask of a worker.
    """
    native.constraint_setting(name = name + "_setting", visibility = ["//visibility:private"])
    native.constraint_value(name = name + "_shown", constraint_setting = name + "_setting")
    nix_platform(
        name = name + "_platform",
        store_paths = [store_path] + more_store_paths,
        constraint_values = constraint_values + [name + "_shown"],
        exec_properties = exec_properties,
    )
    _programs(
        name = name + "_programs",
        store_path = store_path,
        prelude = prelude,
        programs = {"archive": archive, "c": c, "cxx": cxx},
    )
    _config(
        name = name + "_config",
        programs = name + "_programs",
        compile_flags = compile_flags,
        link_flags = link_flags,
        compiler = compiler,
        cpu = cpu,
        libc = libc,
        exec_compatible_with = [name + "_shown"],
    )
    native.filegroup(name = name + "_nothing")
    native.cc_toolchain(
        name = name,
        all_files = name + "_programs",
        ar_files = name + "_programs",
        as_files = name + "_programs",
        compiler_files = name + "_programs",
        dwp_files = name + "_nothing",
        linker_files = name + "_programs",
        objcopy_files = name + "_nothing",
        strip_files = name + "_nothing",
        toolchain_config = name + "_config",
        exec_compatible_with = [name + "_shown"],
    )
    native.toolchain(
        name = name + "_toolchain",
        exec_compatible_with = constraint_values + [name + "_shown"],
        target_compatible_with = constraint_values,
        toolchain = name,
        toolchain_type = "@bazel_tools//tools/cpp:toolchain_type",
    )

def gf_zig_cc_toolchain(name, store_path, target = "x86_64-linux-gnu.2.28", cache = None, **kwargs):
    """A C and C++ toolchain out of Zig as it is published: one folder that has everything.

    Args:
      name: see `gf_nix_cc_toolchain`.
      store_path: the folder that the program `zig` lies in, as a store path.
      target: what Zig compiles for. It must be named: for the machine that it runs on, Zig takes that machine's headers.
      cache: a store path that holds what Zig built of its C library; without it, every link builds that anew, which takes
        half a minute and more. Make it with `ZIG_GLOBAL_CACHE_DIR=<folder>` for one link by `zig c++ -target <target>`.
      **kwargs: what else `gf_nix_cc_toolchain` takes.
    """
    gf_nix_cc_toolchain(
        name = name,
        store_path = store_path,
        c = ["zig", "cc", "-target", target],
        cxx = ["zig", "c++", "-target", target],
        archive = ["zig", "ar"],
        more_store_paths = [cache] if cache else [],
        prelude = _ZIG_PRELUDE + (_ZIG_CACHE_PRELUDE % shell_quoted(check_store_path(cache)) if cache else ""),
        compiler = "zig",
        **kwargs
    )
