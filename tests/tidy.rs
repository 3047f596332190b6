//! Rules of this code base that a machine can check: which room sees which, where `unsafe`, clocks and threads live, how
//! long a file may be, and that every file says what it is for.

use std::fs;
use std::path::{Path, PathBuf};

/// Code lines that a file has at most, without its tests.
const LINES_MAX: usize = 600;

/// What each room may use of the others. Whoever is not named sees nothing but the standard library and crates.
const ARROWS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("sync", &[]),
    ("allocator", &["types"]),
    ("ring", &["sync"]),
    ("ticket", &["sync"]),
    ("store", &["types"]),
    ("cache", &["types"]),
    ("events", &["types"]),
    ("postgres", &["store", "types"]),
    ("redis", &["cache", "types"]),
    ("kafka", &["events", "ticket", "types"]),
    (
        "engine",
        &[
            "allocator",
            "cache",
            "events",
            "ring",
            "store",
            "sync",
            "ticket",
            "types",
        ],
    ),
    ("pools", &["engine", "kafka", "types"]),
];

/// Rooms in which `unsafe` may be opened, file by file.
const UNSAFE_HOMES: &[&str] = &["ring", "ticket", "sync"];

/// Rooms without threads, clocks, I/O, randomness, floats or environment.
const PURE: &[&str] = &["allocator", "types"];

/// Words that pure code doesn't have; the clock that everybody else is given is the one exception.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::io",
    "std::net",
    "std::thread",
    "std::process",
    "std::env",
    "SystemTime",
    "Instant",
    "getrandom",
    "parking_lot",
    "f32",
    "f64",
    "RandomState",
    "unsafe {",
];
const PURE_EXCEPT: &[&str] = &["src/types/clock.rs"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder, as (path from the root, text).
fn files(below: &str) -> Vec<(String, String)> {
    fn visit(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a readable folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                visit(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    visit(&root().join(below), &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("UTF-8");
        let name = path
            .strip_prefix(root())
            .expect("below the root")
            .display()
            .to_string();
        (name, text)
    };
    paths.into_iter().map(read).collect()
}

/// The room of a file of the library; none for `lib.rs`.
fn room(name: &str) -> Option<&str> {
    name.strip_prefix("src/")?
        .split_once('/')
        .map(|(room, _)| room)
}

/// Code without comments and without the tests at the end of a file.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]") && !line.starts_with("#[cfg(all(test"))
        .filter(|line| !line.trim_start().starts_with("//"))
}

fn is_test(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    matches!(
        file,
        "tests.rs" | "loom_tests.rs" | "round_trips.rs" | "sim.rs" | "crash.rs" | "broken.rs"
    )
}

#[test]
fn arrows_between_rooms_point_down_only() {
    for (name, text) in files("src") {
        let Some(room) = room(&name).filter(|_| !is_test(&name)) else {
            continue;
        };
        let seen = ARROWS.iter().find(|(known, _)| *known == room);
        let (_, seen) = seen.unwrap_or_else(|| panic!("{name}: room {room} has no arrows: add it"));
        for line in code(&text) {
            let mut rest = line;
            while let Some(at) = rest.find("crate::") {
                rest = &rest[at + "crate::".len()..];
                let target = rest
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap_or("");
                let is_room = ARROWS.iter().any(|(known, _)| *known == target);
                assert!(
                    !is_room || target == room || seen.contains(&target),
                    "{name}: {room} may not see {target}: {line}"
                );
            }
        }
    }
}

#[test]
fn unsafe_is_opened_in_its_homes_alone_and_each_block_says_why_it_is_sound() {
    for (name, text) in files("src")
        .into_iter()
        .chain(files("examples"))
        .chain(files("tests"))
    {
        if name == "tests/tidy.rs" {
            continue;
        }
        let has_unsafe = code(&text).any(|line| {
            line.contains("unsafe {") || line.contains("unsafe impl") || line.contains("unsafe fn")
        });
        let is_home = room(&name).is_some_and(|room| UNSAFE_HOMES.contains(&room));
        assert!(!has_unsafe || is_home, "{name} has unsafe code");
    }
}

#[test]
fn pure_rooms_have_no_clock_no_threads_no_io_and_no_floats() {
    for (name, text) in files("src") {
        let is_pure = room(&name).is_some_and(|room| PURE.contains(&room));
        if !is_pure || is_test(&name) || PURE_EXCEPT.contains(&name.as_str()) {
            continue;
        }
        for line in code(&text) {
            let found = IMPURE.iter().find(|word| line.contains(**word));
            assert!(found.is_none(), "{name} is pure and has {found:?}: {line}");
        }
    }
}

/// The models add a fence to these accesses, so they can't see one that is weakened; nor can a test on x86.
#[test]
fn the_rings_handshake_is_sequentially_consistent() {
    let named = |text: &str| {
        let lines = code(text).filter(|line| line.contains("// P4"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let rooms = files("src").into_iter();
    let ring = rooms.filter(|(name, _)| room(name) == Some("ring") && !is_test(name));
    let accesses: Vec<String> = ring.flat_map(|(_, text)| named(&text)).collect();
    // The claim and the last producer's leaving; the announced sleep; both sides' looks at the other, one of them double.
    assert_eq!(accesses.len(), 6, "{accesses:#?}");
    for access in accesses {
        assert!(access.contains("Ordering::SeqCst"), "{access}");
    }
}

#[test]
fn every_file_begins_with_what_it_is_for() {
    for folder in ["src", "examples", "tests", "benches"] {
        for (name, text) in files(folder) {
            let first = text.lines().next().unwrap_or_default();
            assert!(
                first.starts_with("//! ") && first.len() > 20,
                "{name} begins without a header"
            );
        }
    }
}

#[test]
fn files_are_short_enough_to_be_read() {
    for (name, text) in ["src", "examples", "tests", "benches"]
        .into_iter()
        .flat_map(files)
    {
        let lines = text
            .lines()
            .take_while(|line| !line.starts_with("#[cfg(test)]"))
            .count();
        assert!(
            lines <= LINES_MAX || is_test(&name),
            "{name} has {lines} lines, at most {LINES_MAX}"
        );
    }
}

#[test]
fn every_sleep_says_why_it_is_no_signal() {
    for (name, text) in ["src", "examples", "tests", "benches"]
        .into_iter()
        .flat_map(files)
    {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let sleeps = line.contains("::sleep(") && name != "tests/tidy.rs";
            let before = lines[at.saturating_sub(4)..at].iter();
            let is_explained = before.rev().any(|line| line.trim().starts_with("//"));
            assert!(!sleeps || is_explained, "{name}:{}: why a sleep?", at + 1);
        }
    }
}

#[test]
fn nothing_is_silenced_without_a_reason() {
    for folder in ["src", "examples", "tests", "benches"] {
        for (name, text) in files(folder) {
            // A module that several test programs share is not used whole by each of them.
            if name == "tests/tidy.rs" || name.ends_with("tests/common/mod.rs") {
                continue;
            }
            assert!(
                !text.contains("#[allow(") && !text.contains("#![allow("),
                "{name}: expect, with a reason"
            );
            assert!(
                !text.contains("#[ignore"),
                "{name}: a test that is ignored proves nothing"
            );
        }
    }
}

#[test]
fn the_top_level_holds_what_it_should_and_nothing_else() {
    const KNOWN: &[&str] = &[
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "README.md",
        "benches",
        "examples",
        "fuzz",
        "src",
        "tests",
    ];
    // What the README's commands leave behind is ignored by name; a published package has no such list and none of it.
    let ignored = fs::read_to_string(root().join(".gitignore")).unwrap_or_default();
    let is_ignored =
        |name: &str| name == "target" || ignored.lines().any(|line| line == format!("/{name}"));
    for entry in fs::read_dir(root()).expect("a readable folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // A published package has a copy of its manifest besides.
        let known =
            name.starts_with('.') || KNOWN.contains(&name.as_str()) || name == "Cargo.toml.orig";
        assert!(
            known || is_ignored(&name),
            "{name} does not belong at the top level"
        );
    }
}
