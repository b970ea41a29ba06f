//! System calls that do less than they were asked for: a library that is loaded before the C
//! library and passes on a part of each write and read of a file, as the kernel may.
//!
//! strace cannot play this: a value that it injects as the result stands for a call that was never
//! made.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::cli::{self, Run};
use crate::tools;

/// Only calls of at least two bytes can be cut short. How often that was done goes to a file at
/// the end.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <stdatomic.h>

static atomic_ulong writes, reads, sends;

static size_t part(size_t len, atomic_ulong *count) {
    if (len < 2) return len;
    unsigned long n = atomic_fetch_add(count, 1);
    /* A third, a half, all but one byte, one byte. */
    size_t parts[] = { len / 3 + 1, len / 2, len - 1, len > 4096 ? len / 7 : 1 };
    return parts[n % 4];
}

static int is_file(int fd) {
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
}

static int is_direct(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_DIRECT);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t at) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    return real(fd, buf, part(len, &writes), at);
}

ssize_t pread64(int fd, void *buf, size_t len, off64_t at) {
    static ssize_t (*real)(int, void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pread64");
    /* A direct read keeps its alignment: the kernel cuts those at sectors. */
    if (is_direct(fd))
        return real(fd, buf, len > 8192 ? (part(len, &reads) + 4095) & ~4095ul : len, at);
    return real(fd, buf, part(len, &reads), at);
}

ssize_t write(int fd, const void *buf, size_t len) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    return real(fd, buf, is_file(fd) ? part(len, &writes) : len);
}

ssize_t send(int fd, const void *buf, size_t len, int flags) {
    static ssize_t (*real)(int, const void *, size_t, int);
    if (!real) real = dlsym(RTLD_NEXT, "send");
    return real(fd, buf, part(len, &sends), flags);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    static ssize_t (*real)(int, const struct iovec *, int);
    if (!real) real = dlsym(RTLD_NEXT, "writev");
    if (count < 1) return real(fd, parts, count);
    struct iovec first = parts[0];
    if (count == 1) first.iov_len = part(first.iov_len, &sends); else atomic_fetch_add(&sends, 1);
    return real(fd, &first, 1);
}

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("SHORT_CALLS");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "%lu %lu %lu\n", atomic_load(&writes), atomic_load(&reads), atomic_load(&sends));
    fclose(file);
}
"#;

/// The library, built.
#[derive(Debug)]
pub struct ShortCalls {
    dir: TempDir,
}

/// How many calls were cut short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shortened {
    /// Writes to files.
    pub writes: u64,
    /// Reads of files.
    pub reads: u64,
    /// Writes to a peer.
    pub sends: u64,
}

impl ShortCalls {
    /// Builds it with the C compiler.
    ///
    /// # Panics
    ///
    /// When that fails.
    pub fn build() -> Self {
        let dir = TempDir::new().expect("folder");
        let source = dir.path().join("short.c");
        fs::write(&source, SOURCE).expect("source of the library");
        let built = Self { dir };
        let args = ["-shared", "-fPIC", "-O1", "-o"].map(PathBuf::from);
        let paths = [built.library(), source, PathBuf::from("-ldl")];
        tools::run("cc", args.iter().chain(&paths));
        built
    }

    /// Runs `failback ARGS` with it.
    ///
    /// # Panics
    ///
    /// When the run cannot be started, hangs, or did not load the library.
    pub fn failback(&self, args: Vec<String>) -> (Run, Shortened) {
        let told = self.dir.path().join("told");
        let mut all = vec![
            format!("LD_PRELOAD={}", text(&self.library())),
            format!("SHORT_CALLS={}", text(&told)),
            text(&cli::binary()).to_owned(),
        ];
        all.extend(args);
        let run = cli::run_program("env", &all);
        let counts = fs::read_to_string(&told).expect("the library was loaded");
        let mut counts = counts.split_whitespace().flat_map(str::parse);
        let mut next = || counts.next().expect("a count");
        let shortened = Shortened {
            writes: next(),
            reads: next(),
            sends: next(),
        };
        (run, shortened)
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("short.so")
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
