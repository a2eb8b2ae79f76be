//! The compilers that tests compile BPF programs with.

use std::{collections::HashMap, env, fs, process::Command, sync::Mutex, sync::OnceLock};

use crate::left_out;

/// The compiler that the environment variable `CLANG` names, else `clang`: the one that the build and policies take.
pub fn clang() -> &'static str {
    static CLANG: OnceLock<String> = OnceLock::new();
    CLANG.get_or_init(|| env::var("CLANG").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "clang".to_owned()))
}

/// [`clang`], and the newest `clang-N` on the `PATH`; reports as left out that there is none, or of the same version.
pub fn clangs() -> Vec<&'static str> {
    const LEFT_OUT: &str = "a newer compiler";
    match newest_clang() {
        None => left_out(LEFT_OUT, "no clang-N is on the PATH; `make test` installs one"),
        Some(newest) if clang_version(newest) == clang_version(clang()) => {
            left_out(LEFT_OUT, format_args!("{newest}, the newest on the PATH, is of the same version as {}", clang()));
        }
        Some(newest) => return vec![clang(), newest],
    }
    vec![clang()]
}

/// The `clang-N` on the `PATH` with the highest N.
pub fn newest_clang() -> Option<&'static str> {
    static NEWEST: OnceLock<Option<String>> = OnceLock::new();
    NEWEST
        .get_or_init(|| {
            let path = env::var_os("PATH")?;
            let programs = env::split_paths(&path).filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
            let versions = programs.filter_map(|file| version_in_name(file.file_name().to_str()?));
            versions.max().map(|version| format!("clang-{version}"))
        })
        .as_deref()
}

/// The first number of a compiler's version, as it says it.
///
/// # Panics
/// If it does not run, or says none.
pub fn clang_version(clang: &str) -> u32 {
    static KNOWN: Mutex<Option<HashMap<String, u32>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    *known.get_or_insert_default().entry(clang.to_owned()).or_insert_with(|| {
        let output = Command::new(clang)
            .arg("--version")
            .output()
            .unwrap_or_else(|error| panic!("running {clang}: {error}; `make test` installs it"));
        let said = String::from_utf8_lossy(&output.stdout);
        version_said(&said).unwrap_or_else(|| panic!("{clang} --version says no version: {said}"))
    })
}

/// N of a file named `clang-N`.
fn version_in_name(name: &str) -> Option<u32> {
    let number = name.strip_prefix("clang-")?;
    if number.starts_with(|first: char| first.is_ascii_digit()) { number.parse().ok() } else { None }
}

/// Of the line "Debian clang version 14.0.6".
fn version_said(said: &str) -> Option<u32> {
    said.split_once("clang version ")?.1.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_compilers_have_a_version_in_their_name() {
        assert_eq!(version_in_name("clang-19"), Some(19));
        for other in ["clang", "clang-", "clang++-19", "clang-cpp-19", "clang-format-19", "clang-+19", "clang-19.1"] {
            assert_eq!(version_in_name(other), None, "{other}");
        }
    }

    #[test]
    fn the_version_is_what_the_compiler_says() {
        assert_eq!(version_said("Debian clang version 14.0.6\nTarget: x86_64-pc-linux-gnu\n"), Some(14));
        assert_eq!(version_said("Ubuntu clang version 18.1.3 (1ubuntu1)\n"), Some(18));
        assert_eq!(version_said("clang version 23.1.4\n"), Some(23));
        assert_eq!(version_said("gcc (Debian 12.2.0-14) 12.2.0\n"), None);
    }
}
