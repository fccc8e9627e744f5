//! `gf config check`, and usage errors.

use std::fs;

use crate::running::{run, text};

const FIVE_MISTAKES: &str = r#"listen = "localhost"
prot = 8980

[log]
format = "xml"

[store]
capacity = "100 parsecs"
lease = 6
"#;

#[test]
fn five_mistakes_are_told_with_their_lines_and_exit_3() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("gf.toml");
    fs::write(&file, FIVE_MISTAKES).unwrap();
    let name = file.to_str().unwrap();

    let checked = run(home.path(), &["config", "check", name]);
    assert_eq!(checked.status.code(), Some(3));
    let said = text(&checked.stderr);
    for line in [1, 2, 5, 8, 9] {
        assert!(said.contains(&format!("{name}:{line}: ")), "line {line} is not in\n{said}");
    }
    assert!(said.contains("5 mistakes"), "{said}");

    let json = run(home.path(), &["config", "check", "--json", name]);
    assert_eq!(json.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let lines: Vec<u64> =
        report["mistakes"].as_array().unwrap().iter().map(|mistake| mistake["line"].as_u64().unwrap()).collect();
    assert_eq!((report["ok"].as_bool(), lines), (Some(false), vec![1, 2, 5, 8, 9]));

    let served = run(home.path(), &["serve", "--config", name]);
    assert_eq!(served.status.code(), Some(2), "{}", text(&served.stderr));
    assert!(text(&served.stderr).contains("gf.toml:9: "));
}

#[test]
fn a_right_file_exits_0_and_one_that_cannot_be_read_2() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("gf.toml");
    fs::write(&file, "[store]\ncapacity = \"1GiB\"\n").unwrap();
    let checked = run(home.path(), &["config", "check", file.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    assert!(text(&checked.stdout).contains("is right"));

    for name in ["/no/such/gf.toml", home.path().to_str().unwrap()] {
        let unread = run(home.path(), &["config", "check", name]);
        assert_eq!(unread.status.code(), Some(2), "{name}: 3 would be a verdict on what it says");
        assert!(text(&unread.stderr).contains(&format!("{name}: cannot be read")));
    }
}

#[test]
fn usage_errors_exit_2() {
    let home = tempfile::tempdir().unwrap();
    for args in [&["serve", "--listen", "nowhere"][..], &["serve", "--what"], &["frobnicate"], &[]] {
        assert_eq!(run(home.path(), args).status.code(), Some(2), "{args:?}");
    }
    let version = run(home.path(), &["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(text(&version.stdout).starts_with("gf "));
}
