//! The routes that the sources of the server mount.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The verbs that a router is told by name.
const VERBS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// Each route, as a verb and a pattern; `ANY` where the handler looks at the verb itself.
pub(super) fn routes() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/src"), &mut found);
    assert!(found.len() > 20, "the routes are not written as this expects: {found:?}");
    found
}

fn collect(folder: &Path, found: &mut BTreeSet<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            // What tests mount is no door.
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            text.match_indices(".route(").for_each(|(at, _)| add(&text[at + ".route(".len()..], found));
        }
    }
}

/// `"PATTERN", get(handler).post(handler))…`
fn add(text: &str, found: &mut BTreeSet<(String, String)>) {
    let call = &text[..end_of_call(text)];
    let (pattern, handlers) = call.trim_start().trim_start_matches('"').split_once('"').unwrap();
    let mut verbs = VERBS.into_iter().filter(|verb| handlers.contains(&format!("{verb}("))).peekable();
    assert!(verbs.peek().is_some() || handlers.contains("any("), "{call}");
    if verbs.peek().is_none() {
        found.insert(("ANY".to_owned(), pattern.to_owned()));
    }
    found.extend(verbs.map(|verb| (verb.to_uppercase(), pattern.to_owned())));
}

/// Where the parenthesis closes that was open before this text.
fn end_of_call(text: &str) -> usize {
    let mut open = 1_i32;
    let closing = text.char_indices().find(|(_, character)| {
        open += match character {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        open == 0
    });
    closing.map(|(at, _)| at).unwrap()
}
