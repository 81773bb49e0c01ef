//! The restrictions that a worker puts on itself before it reads a component: time, memory, files, and most system calls.

use std::io;

use super::WorkerLimits;

#[cfg(unix)]
pub(super) fn limit_resources(limits: WorkerLimits) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    // If the machine runs out of memory, the kernel kills the worker before the daemon. Only Linux has this, and not everywhere.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let seconds = limits.computing.as_secs().max(1);
    let limit = |resource, soft: u64, hard: u64| {
        let limit = Rlimit {
            current: Some(soft),
            maximum: Some(hard),
        };
        setrlimit(resource, limit)
    };
    limit(Resource::Cpu, seconds, seconds + 1)?;
    // The worker writes only to a pipe, and leaves no core dump.
    limit(Resource::Fsize, 0, 0)?;
    limit(Resource::Core, 0, 0)?;
    // Some systems lack this limit. All have the time limit.
    let _ = limit(Resource::As, limits.memory_bytes, limits.memory_bytes);
    Ok(())
}

#[cfg(not(unix))]
pub(super) fn limit_resources(_: WorkerLimits) -> io::Result<()> {
    Ok(())
}

/// Restrict this process to memory, threads, and its open files. If the kernel has no seccomp, or `seccompiler` does not know the
/// architecture, only the other limits apply.
#[cfg(target_os = "linux")]
pub(super) fn limit_system_calls() {
    if let Ok(filters) = linux::filters() {
        for filter in &filters {
            let _ = seccompiler::apply_filter_all_threads(filter);
        }
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn limit_system_calls() {}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;

    use seccompiler::{
        BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
        SeccompFilter, SeccompRule, TargetArch,
    };

    /// System calls that a worker may make with any arguments.
    const ALLOWED: [i64; 30] = [
        // The pipes.
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        // Memory. `conditional` has the calls that make it executable.
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        // Threads.
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_membarrier,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_exit,
        libc::SYS_exit_group,
        // Signals to itself.
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        // Clocks and random numbers.
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_gettimeofday,
        libc::SYS_getrandom,
    ];

    /// The filters, in the order of installation. The kernel obeys the strictest.
    pub(super) fn filters() -> Result<[BpfProgram; 2], BackendError> {
        let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
        // glibc creates threads by `clone3`, whose flags a filter cannot read. If the kernel seems to lack it, glibc uses `clone`.
        let no_clone3 = SeccompFilter::new(
            BTreeMap::from([(libc::SYS_clone3, vec![])]),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::ENOSYS as u32),
            architecture,
        )?;
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = conditional()?;
        rules.extend(ALLOWED.map(|call| (call, vec![])));
        rules.insert(libc::SYS_clone3, vec![]);
        let allowed = SeccompFilter::new(
            rules,
            SeccompAction::Errno(libc::EPERM as u32),
            SeccompAction::Allow,
            architecture,
        )?;
        Ok([no_clone3.try_into()?, allowed.try_into()?])
    }

    /// System calls that are allowed with some arguments only.
    fn conditional() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
        let has_bits = |index, bits: u64, value: u64| {
            let operator = SeccompCmpOp::MaskedEq(bits);
            SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)
        };
        let is = |index, value: u64| {
            SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
        };
        let rule = |conditions| SeccompRule::new(conditions).map(|rule| vec![rule]);
        let (executable, thread) = (libc::PROT_EXEC as u64, libc::CLONE_THREAD as u64);
        let process = u64::from(std::process::id());
        let abort = libc::SIGABRT as u64;
        Ok(BTreeMap::from([
            (libc::SYS_mmap, rule(vec![has_bits(2, executable, 0)?])?),
            (libc::SYS_mprotect, rule(vec![has_bits(2, executable, 0)?])?),
            // This allows a thread but no process, because a process would have a separate time limit.
            (libc::SYS_clone, rule(vec![has_bits(0, thread, thread)?])?),
            // The `abort` of glibc, and that of musl on the first thread.
            (libc::SYS_tgkill, rule(vec![is(0, process)?])?),
            (libc::SYS_tkill, rule(vec![is(0, process)?, is(1, abort)?])?),
            (
                libc::SYS_prctl,
                rule(vec![is(0, libc::PR_SET_NAME as u64)?])?,
            ),
        ]))
    }

    #[cfg(test)]
    mod tests {
        use std::io::ErrorKind;

        use super::*;

        /// In a separate thread, because a filter stays until its thread ends.
        #[test]
        fn restricted_thread_computes_and_reaches_nothing() {
            let restricted = std::thread::spawn(|| {
                for filter in filters().unwrap() {
                    seccompiler::apply_filter(&filter).unwrap();
                }
                let open = std::fs::File::open("/etc/passwd").map(drop);
                let connect = std::net::TcpStream::connect("127.0.0.1:9").map(drop);
                let listen = std::net::UdpSocket::bind("127.0.0.1:0").map(drop);
                let start = std::process::Command::new("/bin/true").spawn().map(drop);
                let refused = [open, connect, listen, start].map(|it| it.unwrap_err().kind());
                let computed = std::thread::spawn(|| vec![1_u8; 32 << 20].iter().count());
                (refused, computed.join().unwrap())
            });
            let (refused, computed) = restricted.join().unwrap();
            assert_eq!(refused, [ErrorKind::PermissionDenied; 4]);
            assert_eq!(computed, 32 << 20);
        }
    }
}
