//! Who may name whom: the table of ARCHITECTURE.md, "Rooms", as data.

use super::{Breach, Tree, paths, paths::Named, source::Source};

/// What a room must not name, and the reason.
struct Ban {
    /// Where it holds: paths of the tree that begin so.
    inside: &'static [&'static str],
    /// Except here.
    except: &'static [&'static str],
    /// What is banned.
    never: &'static [&'static str],
    /// Why, to finish the sentence "`x` is named here: …".
    why: &'static str,
}

/// Reading and writing; what a pure room is given instead is a `Memory` or bytes.
const INPUT_OUTPUT: &[&str] =
    &["std::fs", "std::io", "std::net", "std::process", "std::env", "std::os", "rustix", "libc", "procfs"];

const BANS: &[Ban] = &[
    Ban {
        inside: &["profiler-common/src/"],
        except: &[],
        never: &["std", "alloc", "aya", "aya_ebpf", "*unsafe"],
        why: "profiler-common runs in the kernel and over recorded memory, on core alone",
    },
    Ban {
        inside: &["profiler-ebpf/src/"],
        except: &[],
        never: &["std", "alloc", "*unwrap", "*expect", "*format_args"],
        why: "the kernel part has no library, no text and no panic",
    },
    Ban {
        inside: &["profiler-user/", "proto/", "tests/", "xtask/"],
        except: &["profiler-user/src/kernel/"],
        never: &["aya", "aya_log", "aya_obj"],
        why: "only profiler-user/src/kernel talks to the kernel by aya",
    },
    Ban {
        inside: &["profiler-user/", "profiler-common/", "proto/", "tests/", "xtask/"],
        except: &["profiler-user/src/memory/"],
        never: &["*process_vm_readv", "*process_vm_writev"],
        why: "only profiler-user/src/memory reads the target, and nobody writes it",
    },
    Ban {
        inside: &["profiler-user/", "profiler-common/", "proto/"],
        except: &[],
        never: &["*ptrace", "*process_vm_writev", "*PTRACE_ATTACH", "*PTRACE_SEIZE"],
        why: "the target is only read, never stopped",
    },
    Ban {
        inside: &["profiler-user/src/kernel/"],
        except: &[],
        never: &["crate::export", "crate::python", "inferno", "serde_json", "gimli", "prost"],
        why: "kernel loads, attaches and drains; formats and symbols are other rooms'",
    },
    Ban {
        inside: &["profiler-user/src/memory/"],
        except: &[],
        never: &[
            "crate::agent",
            "crate::cli",
            "crate::export",
            "crate::kernel",
            "crate::profile",
            "crate::python",
            "crate::target",
            "crate::timeline",
            "crate::trace",
            "crate::view",
        ],
        why: "memory reads bytes and knows nothing of what they mean",
    },
    Ban {
        inside: &["profiler-user/src/target/"],
        except: &[],
        never: &["crate::kernel", "crate::export"],
        why: "target describes a process; it neither attaches nor writes results",
    },
    Ban {
        inside: &["profiler-user/src/python/", "profiler-user/src/timeline/", "profiler-user/src/profile/"],
        except: &[],
        never: INPUT_OUTPUT,
        why: "this room is pure: what it needs is handed in",
    },
    Ban {
        inside: &["profiler-user/src/python/", "profiler-user/src/timeline/", "profiler-user/src/profile/"],
        except: &[],
        never: &["*Instant", "*SystemTime", "*clock_gettime"],
        why: "time in the core is a parameter, never a call",
    },
    Ban {
        inside: &["profiler-user/src/python/", "profiler-user/src/timeline/", "profiler-user/src/profile/"],
        except: &[],
        never: &["crate::kernel", "crate::target", "crate::export"],
        why: "this room is pure: it knows neither processes nor destinations",
    },
    Ban {
        inside: &["profiler-user/src/trace/"],
        except: &[],
        never: &["crate::export", "crate::kernel"],
        why: "trace is policy and readers over a `Memory`",
    },
    Ban {
        inside: &["profiler-user/src/export/"],
        except: &[],
        never: &["crate::kernel", "crate::memory", "crate::target"],
        why: "an exporter takes finished batches, never the target",
    },
    Ban {
        inside: &["profiler-user/src/agent/"],
        except: &[],
        never: &["inferno", "prost"],
        why: "agent moves batches; formats are export's",
    },
    Ban {
        inside: &[
            "profiler-user/src/export/",
            "profiler-user/src/kernel/",
            "profiler-user/src/memory/",
            "profiler-user/src/profile/",
            "profiler-user/src/python/",
            "profiler-user/src/target/",
            "profiler-user/src/timeline/",
            "profiler-user/src/trace/",
        ],
        except: &[],
        never: &["crate::agent", "crate::cli", "crate::view", "clap", "indicatif", "ratatui"],
        why: "terminals and commands are cli's and view's",
    },
    Ban {
        inside: &["profiler-user/src/kernel/", "profiler-user/src/memory/", "profiler-user/src/timeline/"],
        except: &[],
        never: &["tokio", "tonic"],
        why: "the capture path has no async",
    },
];

/// Crates in which no line is unsafe, by the file that says so.
const SAFE: [&str; 4] =
    ["profiler-common/src/lib.rs", "proto/src/lib.rs", "tests/src/lib.rs", "xtask/src/main.rs"];

/// A room that names what it must not.
pub(super) fn imports(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for source in tree.rust() {
        let bans: Vec<&Ban> = BANS.iter().filter(|ban| ban.holds_in(&source.path)).collect();
        if bans.is_empty() {
            continue;
        }
        for mut named in paths::named(source.product_code()) {
            from_the_crate(source, &mut named);
            for ban in &bans {
                if let Some(banned) = ban.broken_by(&named) {
                    let banned = banned.trim_start_matches('*');
                    let what = format!("`{banned}` is named here: {}", ban.why);
                    breaches.push(source.breach(named.line, what));
                }
            }
        }
    }
    breaches
}

impl Ban {
    fn holds_in(&self, path: &str) -> bool {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| lies_in(path, prefix));
        begins(self.inside) && !begins(self.except)
    }

    /// `*name` is banned wherever it stands, `a::b` as the beginning of a path.
    fn broken_by(&self, named: &Named) -> Option<&'static str> {
        self.never.iter().copied().find(|never| match never.strip_prefix('*') {
            Some(name) => named.holds(name),
            None => named.begins_with(never),
        })
    }
}

/// A room is a folder, or while it is small one file of its name.
fn lies_in(path: &str, room: &str) -> bool {
    path.starts_with(room) || path.strip_suffix(".rs") == Some(room.trim_end_matches('/'))
}

/// Write `super::super::kernel` as `crate::kernel`, where that is what it names.
fn from_the_crate(source: &Source, named: &mut Named) {
    let supers = named.parts.iter().take_while(|part| *part == "super").count();
    let Some((_, inside)) = source.path.split_once("/src/") else { return };
    let depth = inside.trim_end_matches("/mod.rs").trim_end_matches(".rs").split('/').count();
    if supers > 0 && supers == depth {
        named.parts.splice(..supers, ["crate".to_owned()]);
    }
}

/// A room that ARCHITECTURE.md does not name as `profiler-user::NAME`.
pub(super) fn every_room_is_described(tree: &Tree) -> Vec<Breach> {
    // Without the document there is another breach, of whoever mentions it.
    let Some(document) = tree.text("ARCHITECTURE.md") else { return Vec::new() };
    let mut breaches = Vec::new();
    let mut last = "";
    for source in tree.rust() {
        let Some(inside) = source.path.strip_prefix("profiler-user/src/") else { continue };
        let room = inside.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        let named = ["lib", "main"].contains(&room) || room == last || {
            let name = format!("profiler-user::{room}");
            document.text.match_indices(&name).any(|(at, name)| {
                let after = document.text.get(at + name.len()..).and_then(|rest| rest.chars().next());
                after.is_none_or(|after| !after.is_alphanumeric() && after != '_')
            })
        };
        if !named {
            let what =
                format!("the room `{room}` is not in ARCHITECTURE.md: say what profiler-user::{room} is for");
            breaches.push(source.breach(0, what));
        }
        last = room;
    }
    breaches
}

/// A crate that must be safe and does not say so.
pub(super) fn unsafe_is_forbidden(tree: &Tree) -> Vec<Breach> {
    let says = |source: &&Source| source.code.contains("#![forbid(unsafe_code)]");
    let roots = SAFE.iter().filter_map(|path| tree.text(path));
    roots
        .filter(|source| !says(source))
        .map(|source| source.breach(0, "this crate is safe, and must say #![forbid(unsafe_code)]"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{found, tree};
    use super::*;

    fn check(path: &str, text: &str, banned: &[&str]) {
        let breaches: Vec<String> = imports(&tree(&[(path, text)]))
            .iter()
            .map(|breach| breach.what.split('`').nth(1).unwrap_or_default().to_owned())
            .collect();
        assert_eq!(breaches, banned, "{path}: {text}");
    }

    #[test]
    fn each_ban_fires_on_what_it_bans() {
        for ban in BANS {
            for never in ban.never {
                let code = format!("use {};", never.trim_start_matches('*'));
                for inside in ban.inside {
                    let path = format!("{inside}x.rs");
                    let source = tree(&[(&path, &code)]);
                    let fired = imports(&source).iter().any(|breach| breach.what.ends_with(ban.why));
                    assert!(fired, "{path}: {code}");
                }
                for except in ban.except {
                    let path = format!("{except}x.rs");
                    let source = tree(&[(&path, &code)]);
                    let fired = imports(&source).iter().any(|breach| breach.what.ends_with(ban.why));
                    assert!(!fired, "{path}: {code}");
                }
            }
        }
    }

    #[test]
    fn a_ban_is_found_however_it_is_written() {
        let python = "profiler-user/src/python/strings.rs";
        check(python, "use std::{collections::HashMap, fs::File};", &["std::fs"]);
        check(python, "fn f() { let x = std::fs::read(p); }", &["std::fs"]);
        check(python, "use std::time;\nfn f() { time::Instant::now(); }", &["Instant"]);
        check(python, "use super::super::kernel::Engine;", &["crate::kernel"]);
        check("profiler-user/src/python/mod.rs", "use super::kernel;", &["crate::kernel"]);
        check("profiler-user/src/python.rs", "use super::kernel;", &["crate::kernel"]);
    }

    #[test]
    fn what_only_looks_like_a_ban_is_let_be() {
        let python = "profiler-user/src/python/strings.rs";
        check(python, "//! As std::fs would.\nlet x = \"std::fs\";", &[]);
        check(python, "use std::fmt;\nuse super::kernel;", &[]);
        check(python, "#[cfg(test)]\nmod tests {\n use std::fs;\n}", &[]);
        check("profiler-user/src/target/mod.rs", "use std::fs;", &[]);
        check("profiler-user/src/kernel/engine.rs", "use aya::Ebpf;", &[]);
    }

    #[test]
    fn a_room_must_be_described() {
        let check = |path: &str, document: &str, count: usize| {
            let tree = tree(&[("ARCHITECTURE.md", document), (path, "")]);
            assert_eq!(every_room_is_described(&tree).len(), count, "{path}: {document}");
        };
        let document = "| profiler-user::python | pure |";
        check("profiler-user/src/python/mod.rs", document, 0);
        check("profiler-user/src/python.rs", document, 0);
        check("profiler-user/src/main.rs", document, 0);
        check("profiler-user/src/pyth/mod.rs", document, 1);
        check("profiler-user/src/session/mod.rs", document, 1);
    }

    #[test]
    fn a_safe_crate_must_say_so() {
        let path = "xtask/src/main.rs";
        assert_eq!(found(unsafe_is_forbidden, path, "#![forbid(unsafe_code)]\n"), [""; 0]);
        assert_eq!(found(unsafe_is_forbidden, path, "// #![forbid(unsafe_code)]\n").len(), 1);
    }
}
