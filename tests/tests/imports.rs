//! Goal: imports run one way: cli -> engine -> transport, vhdx; tests, benches and fuzz see all.
//! Method: read the manifests and every `failback_` path in the code, compare with the list.
#![cfg(unix)]

use std::collections::BTreeSet;
use std::fs;

use failback_tests::source;
use toml::Table;

/// Folder, and the siblings that its code may name. `cli` goes through `engine`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("vhdx", &[]),
    ("transport", &[]),
    ("engine", &["failback-transport", "failback-vhdx"]),
    ("cli", &["failback-engine"]),
];

#[test]
fn manifests_name_only_allowed_siblings() {
    for (folder, allowed) in ALLOWED {
        let named = siblings_in_manifest(folder, &["dependencies", "build-dependencies"]);
        let allowed = allowed.iter().map(|name| (*name).to_owned()).collect();
        let wrong: BTreeSet<_> = named.difference(&allowed).collect();
        assert!(wrong.is_empty(), "{folder}/Cargo.toml depends on {wrong:?}");
    }
}

#[test]
fn tests_of_a_crate_see_no_more_than_the_crate() {
    for (folder, allowed) in ALLOWED {
        let named = siblings_in_manifest(folder, &["dev-dependencies"]);
        let allowed = allowed.iter().map(|name| (*name).to_owned()).collect();
        let wrong: BTreeSet<_> = named.difference(&allowed).collect();
        assert!(wrong.is_empty(), "{folder}/Cargo.toml tests with {wrong:?}");
    }
}

#[test]
fn code_names_only_allowed_siblings() {
    for (folder, allowed) in ALLOWED {
        for file in source::rust_files(folder) {
            let code = file.code();
            let mut named: BTreeSet<String> = code
                .match_indices("failback_")
                .map(|(at, _)| crate_at(&code[at..]))
                .collect();
            named.remove(&format!("failback-{folder}"));
            named.retain(|name| !allowed.contains(&name.as_str()));
            // A path to a crate; `failback_block` as a variable would be none.
            named.retain(|name| code.contains(&format!("{}::", name.replace('-', "_"))));
            assert!(named.is_empty(), "{} names {named:?}", file.path);
        }
    }
}

#[test]
fn target_specific_dependencies_name_no_siblings() {
    for (folder, _) in ALLOWED {
        let manifest = manifest(folder);
        let text = manifest
            .get("target")
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(!text.contains("failback-"), "{folder}/Cargo.toml: {text}");
    }
}

fn manifest(folder: &str) -> Table {
    let path = source::root().join(folder).join("Cargo.toml");
    let text = fs::read_to_string(&path).expect("manifest");
    text.parse()
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn siblings_in_manifest(folder: &str, sections: &[&str]) -> BTreeSet<String> {
    let manifest = manifest(folder);
    let tables = sections
        .iter()
        .filter_map(|section| manifest.get(*section)?.as_table());
    let names = tables.flat_map(|table| table.keys().cloned());
    names.filter(|name| name.starts_with("failback-")).collect()
}

fn crate_at(code: &str) -> String {
    let name = code
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_');
    name.collect::<String>().replace('_', "-")
}
