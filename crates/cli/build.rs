//! Has the command linked so that hosts without a compiler can run it.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    if let Some(archives) = Archives::find() {
        archives.prefer().expect("cargo's folder for what is built can be written");
    }
}

/// What libbpf needs and many hosts do not have, as static libraries. Where there are none, as with Fedora's packages, or they
/// lack functions of elfutils' own, as Debian 13's, the shared ones are linked.
struct Archives {
    libelf: Vec<PathBuf>,
    zlib: PathBuf,
}

impl Archives {
    fn find() -> Option<Archives> {
        println!("cargo::rerun-if-env-changed=CC");
        if env::var("HOST") != env::var("TARGET") {
            return None;
        }
        let zlib = archive("libz.a")?;
        let mut libelf = vec![archive("libelf.a")?];
        // from elfutils 0.189 on, if it was built with it
        if contains(&libelf[0], b"ZSTD_") {
            libelf.push(archive("libzstd.a")?);
        }
        libelf.push(zlib.clone());
        let archives = Archives { libelf, zlib };
        archives.are_whole().then_some(archives)
    }

    /// Whether a program of theirs alone can be linked.
    fn are_whole(&self) -> bool {
        let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let source = folder.join("uses_libelf.c");
        fs::write(&source, USES_LIBELF).expect("cargo's folder for what is built can be written");
        let mut link = Command::new(compiler());
        link.arg(&source).args(&self.libelf).arg("-o").arg(folder.join("uses_libelf"));
        link.output().is_ok_and(|output| output.status.success())
    }

    /// `-lelf` and `-lz` mean the first library of that name; so they are to be these, in linker scripts.
    fn prefer(&self) -> io::Result<()> {
        let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("static");
        fs::create_dir_all(&folder)?;
        let libelf: Vec<String> = self.libelf.iter().map(|path| path.display().to_string()).collect();
        fs::write(folder.join("libelf.so"), format!("GROUP ( {} )\n", libelf.join(" ")))?;
        fs::write(folder.join("libz.so"), format!("INPUT ( {} )\n", self.zlib.display()))?;
        for path in &self.libelf {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        println!("cargo::rustc-link-search=native={}", folder.display());
        Ok(())
    }
}

/// Reads and writes objects by what libbpf calls.
const USES_LIBELF: &str = "
typedef struct Elf Elf;
Elf *elf_begin(int, int, Elf *), *elf_memory(char *, unsigned long);
long elf_update(Elf *, int);
int elf_end(Elf *);
int main(void)
{
	return elf_begin(0, 1, 0) == elf_memory(0, 0) && elf_update(0, 0) && elf_end(0);
}
";

fn compiler() -> OsString {
    env::var_os("CC").unwrap_or_else(|| "cc".into())
}

/// Where the linker has a library: the C compiler prints the bare name if it has not.
fn archive(name: &str) -> Option<PathBuf> {
    let output = Command::new(compiler()).arg(format!("-print-file-name={name}")).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end());
    (path.is_absolute() && path.is_file()).then_some(path)
}

fn contains(path: &Path, text: &[u8]) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.windows(text.len()).any(|window| window == text))
}
