//! A C++ workspace, always the same one: 20 libraries of 15 sources over a few headers of templates, and a program.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const LIBRARIES: usize = 20;
const SOURCES_OF_A_LIBRARY: usize = 15;
/// Its compilations.
pub(super) const COMPILATIONS: usize = LIBRARIES * SOURCES_OF_A_LIBRARY + 1;
/// The target that needs all of them.
pub(super) const TARGET: &str = "//:turbine";

/// What the glue of packaged rules overrides must be a dependency.
const MODULE: &str = r#"module(name = "turbine")

bazel_dep(name = "rules_cc", version = "0.0.9")
bazel_dep(name = "rules_rust", version = "0.54.1")
bazel_dep(name = "rules_shell", version = "0.2.0")
"#;

const MATRIX: &str = r"#pragma once
#include <cstddef>

template <std::size_t Rows, std::size_t Columns>
struct Matrix {
  double cells[Rows * Columns] = {};
  double& at(std::size_t row, std::size_t column) { return cells[row * Columns + column]; }
  double at(std::size_t row, std::size_t column) const { return cells[row * Columns + column]; }
};

template <std::size_t Rows, std::size_t Inner, std::size_t Columns>
Matrix<Rows, Columns> operator*(const Matrix<Rows, Inner>& left, const Matrix<Inner, Columns>& right) {
  Matrix<Rows, Columns> product;
  for (std::size_t row = 0; row < Rows; ++row)
    for (std::size_t column = 0; column < Columns; ++column)
      for (std::size_t inner = 0; inner < Inner; ++inner)
        product.at(row, column) += left.at(row, inner) * right.at(inner, column);
  return product;
}
";

const CASCADE: &str = r#"#pragma once
#include "core/matrix.h"

// A stage of size N, and all smaller ones below it.
template <std::size_t N, int Salt>
double cascade(double load) {
  Matrix<N, N + 1> left;
  Matrix<N + 1, N> right;
  for (std::size_t i = 0; i < N; ++i) {
    left.at(i, i) = load + static_cast<double>(i) * Salt;
    right.at(i, i) = load - static_cast<double>(i);
  }
  double sum = (left * right).at(N - 1, N - 1);
  if constexpr (N > 1) sum += cascade<N - 1, Salt>(sum);
  return sum;
}
"#;

/// Writes it below `folder`.
pub(super) fn write(folder: &Path) -> std::io::Result<()> {
    put(folder, "MODULE.bazel", MODULE)?;
    put(folder, "BUILD.bazel", &program_rule())?;
    put(folder, "main.cc", &program())?;
    put(folder, "core/BUILD.bazel", &library_rule("core", "glob([\"*.h\"])", "[]", &[]))?;
    put(folder, "core/matrix.h", MATRIX)?;
    put(folder, "core/cascade.h", CASCADE)?;
    for library in 0..LIBRARIES {
        let name = library_name(library);
        let below: Vec<String> = below(library).map(|below| format!("//{}", library_name(below))).collect();
        let dependencies: Vec<&str> = std::iter::once("//core").chain(below.iter().map(String::as_str)).collect();
        let rule = library_rule(&name, "glob([\"*.h\"])", "glob([\"*.cc\"])", &dependencies);
        put(folder, &format!("{name}/BUILD.bazel"), &rule)?;
        for number in 0..SOURCES_OF_A_LIBRARY {
            put(folder, &format!("{name}/stage_{number}.h"), &header(library, number))?;
            put(folder, &format!("{name}/stage_{number}.cc"), &source(library, number))?;
        }
    }
    Ok(())
}

fn put(folder: &Path, path: &str, text: &str) -> std::io::Result<()> {
    let path = folder.join(path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, text)
}

fn library_name(library: usize) -> String {
    format!("rotor_{library:02}")
}

/// The library that another stands on, so that inputs come from some depth.
fn below(library: usize) -> impl Iterator<Item = usize> {
    (library > 0).then_some(library / 2).filter(|below| *below != library).into_iter()
}

fn library_rule(name: &str, headers: &str, sources: &str, dependencies: &[&str]) -> String {
    format!(
        "cc_library(\n    name = \"{name}\",\n    srcs = {sources},\n    hdrs = {headers},\n    \
         visibility = [\"//visibility:public\"],\n    deps = {dependencies:?},\n)\n"
    )
}

fn program_rule() -> String {
    let libraries: Vec<String> = (0..LIBRARIES).map(|library| format!("//{}", library_name(library))).collect();
    format!("cc_binary(\n    name = \"turbine\",\n    srcs = [\"main.cc\"],\n    deps = {libraries:?},\n)\n")
}

fn function(library: usize, number: usize) -> String {
    format!("{}_stage_{number}", library_name(library))
}

fn header(library: usize, number: usize) -> String {
    format!("#pragma once\n\ndouble {}(double load);\n", function(library, number))
}

/// Its own templates with its own numbers, and a call into the library below.
fn source(library: usize, number: usize) -> String {
    let mut text = format!("#include \"{}/stage_{number}.h\"\n\n#include \"core/cascade.h\"\n", library_name(library));
    let mut call = String::new();
    for below in below(library) {
        let _ = writeln!(text, "#include \"{}/stage_{number}.h\"", library_name(below));
        let _ = write!(call, " + {}(load)", function(below, number));
    }
    let salt = library * SOURCES_OF_A_LIBRARY + number;
    let _ = write!(
        text,
        "\ndouble {}(double load) {{\n  return cascade<{}, {salt}>(load){call};\n}}\n",
        function(library, number),
        8 + number % 5
    );
    text
}

fn program() -> String {
    let all = || (0..LIBRARIES).flat_map(|library| (0..SOURCES_OF_A_LIBRARY).map(move |number| (library, number)));
    let mut text = String::new();
    for (library, number) in all() {
        let _ = writeln!(text, "#include \"{}/stage_{number}.h\"", library_name(library));
    }
    text.push_str("\nint main() {\n  double load = 1;\n");
    for (library, number) in all() {
        let _ = writeln!(text, "  load += {}(load) > 0 ? 1 : 2;", function(library, number));
    }
    text.push_str("  return load > 0 ? 0 : 1;\n}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Vec<std::path::PathBuf> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn it_has_as_many_sources_as_it_says() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let sources = files(folder.path()).into_iter().filter(|path| path.extension().is_some_and(|end| end == "cc"));
        assert_eq!(sources.count(), COMPILATIONS);
    }
}
