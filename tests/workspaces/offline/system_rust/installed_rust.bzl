"""A repository with the rustc of /usr/bin and its standard library."""

_BUILD = """
load("@rules_rust//rust:toolchain.bzl", "rust_stdlib_filegroup")

package(default_visibility = ["//visibility:public"])

exports_files(["rustc", "rustdoc"])

rust_stdlib_filegroup(
    name = "std",
    srcs = glob(["lib/rustlib/*/lib/*.rlib", "lib/rustlib/*/lib/*.rmeta"]),
)
"""

def _installed_rust(context):
    # Scripts, not links: a link would make the compiler's own bytes an input, without its libraries.
    for tool in ["rustc", "rustdoc"]:
        context.file(tool, "#!/bin/sh\nexec /usr/bin/%s \"$@\"\n" % tool, executable = True)
    target_libraries = "lib/rustlib/x86_64-unknown-linux-gnu/lib"
    context.symlink("/usr/lib/rustlib/x86_64-unknown-linux-gnu/lib", target_libraries)
    context.file("BUILD.bazel", _BUILD)

installed_rust = repository_rule(
    implementation = _installed_rust,
    local = True,
)
