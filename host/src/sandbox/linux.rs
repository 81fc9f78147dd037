//! seccomp(2) and landlock(7).

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, ensure};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use libc::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::Shares;

/// Calls on what is open, on memory, time and threads of our own.
const ALLOWED: &[c_long] = &[
    // Files and other descriptors.
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_close,
    SYS_close_range,
    SYS_fstat,
    SYS_lseek,
    SYS_fsync,
    SYS_fdatasync,
    SYS_sync_file_range,
    SYS_fallocate,
    SYS_ftruncate,
    SYS_copy_file_range,
    SYS_fadvise64,
    SYS_flock,
    SYS_fcntl,
    SYS_dup,
    SYS_dup3,
    SYS_pipe2,
    SYS_eventfd2,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
    SYS_signalfd4,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_ppoll,
    SYS_poll,
    SYS_pselect6,
    // Sockets that are there.
    SYS_socketpair,
    SYS_accept4,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_recvmmsg,
    SYS_sendto,
    SYS_sendmsg,
    SYS_sendmmsg,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_getsockname,
    SYS_getpeername,
    // Memory.
    SYS_brk,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_mincore,
    SYS_msync,
    SYS_memfd_create,
    SYS_membarrier,
    // Threads, time, and what a process knows of itself.
    SYS_futex,
    SYS_set_robust_list,
    SYS_get_robust_list,
    SYS_rseq,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_nanosleep,
    SYS_clock_nanosleep,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_gettimeofday,
    SYS_getrandom,
    SYS_getpid,
    SYS_gettid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getrusage,
    SYS_getcpu,
    SYS_sysinfo,
    SYS_uname,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigtimedwait,
    SYS_rt_sigpending,
    SYS_sigaltstack,
    SYS_restart_syscall,
    SYS_exit,
    SYS_exit_group,
];

/// Calls by name, for a directory that the guest reads.
const TO_READ: &[c_long] = &[SYS_openat, SYS_newfstatat, SYS_readlinkat, SYS_getdents64, SYS_fstatfs];
/// And for one that it changes.
const TO_CHANGE: &[c_long] = &[
    SYS_mkdirat,
    SYS_mknodat,
    SYS_symlinkat,
    SYS_linkat,
    SYS_renameat,
    SYS_renameat2,
    SYS_unlinkat,
    SYS_fchmod,
    SYS_fchmodat2,
    SYS_fchown,
    SYS_fchownat,
    SYS_utimensat,
];

/// Requests to terminals, disk devices, sound devices and descriptors.
const IOCTLS: &[u64] = &[
    TCGETS,
    TCSETS,
    TCSETSW,
    TCSETSF,
    TIOCGWINSZ,
    TIOCGPGRP,
    TIOCSBRK,
    TIOCCBRK,
    TIOCMGET,
    TIOCMSET,
    TIOCOUTQ,
    FIONREAD,
    FIONBIO,
    FIOCLEX,
    0x1268,      // BLKSSZGET
    0x1277,      // BLKDISCARD
    0x8008_1272, // BLKGETSIZE64
    0x5000,      // SNDCTL_DSP_RESET
    0xc004_5002, // SNDCTL_DSP_SPEED
    0xc004_5005, // SNDCTL_DSP_SETFMT
    0xc004_5006, // SNDCTL_DSP_CHANNELS
];
/// The type byte of all requests to /dev/kvm and what comes of it.
const KVM: u64 = 0xae00;

/// An argument of a call, and what it must be under a mask.
fn when(argument: u8, mask: u64, value: u64) -> Result<SeccompRule> {
    let operator = SeccompCmpOp::MaskedEq(mask);
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value & mask)?;
    Ok(SeccompRule::new(vec![condition])?)
}

fn filter(shares: Shares) -> Result<BpfProgram> {
    const WHOLE: u64 = u64::MAX;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    let own_pid = u64::from(std::process::id());
    let thread = u64::from((CLONE_VM | CLONE_THREAD) as u32);
    let of_descriptor = u64::from(AT_EMPTY_PATH as u32);
    let ioctls = IOCTLS.iter().map(|&request| when(1, 0xffff_ffff, request));
    rules.extend([
        (SYS_ioctl, ioctls.chain([when(1, 0xff00, KVM)]).collect::<Result<_>>()?),
        // fstat(2) is one of these to many.
        (SYS_newfstatat, vec![when(3, of_descriptor, of_descriptor)?]),
        (SYS_statx, vec![when(2, of_descriptor, of_descriptor)?]),
        // Nothing that we write is a program.
        (SYS_mmap, vec![when(2, PROT_EXEC as u64, 0)?]),
        (SYS_mprotect, vec![when(2, PROT_EXEC as u64, 0)?]),
        // A thread, no process.
        (SYS_clone, vec![when(0, thread, thread)?]),
        (SYS_tgkill, vec![when(0, WHOLE, own_pid)?]),
        (SYS_kill, vec![when(0, WHOLE, own_pid)?]),
        (SYS_prctl, vec![when(0, WHOLE, PR_SET_NAME as u64)?, when(0, WHOLE, PR_SET_VMA as u64)?]),
        // To look; a limit can be lowered, and stays that way.
        (SYS_prlimit64, vec![when(2, WHOLE, 0)?]),
    ]);
    let reads = TO_READ.iter().filter(|_| shares >= Shares::Read);
    let changes = TO_CHANGE.iter().filter(|_| shares >= Shares::Write);
    rules.extend(reads.chain(changes).map(|&call| (call, Vec::new())));
    // Refused by its own filter.
    rules.insert(SYS_clone3, Vec::new());
    let refuse = SeccompAction::Errno(EPERM as u32);
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?.try_into()?)
}

/// clone3(2) takes its flags in memory, where no filter can look: without it the C library uses clone(2).
fn without_clone3() -> Result<BpfProgram> {
    let rules = BTreeMap::from([(SYS_clone3, Vec::new())]);
    let absent = SeccompAction::Errno(ENOSYS as u32);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, absent, std::env::consts::ARCH.try_into()?)?.try_into()?)
}

/// No file by name, no port, no socket or signal out of here.
fn landlock() -> Result<RulesetCreated> {
    let abi = ABI::V6;
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?;
    Ok(ruleset.create()?)
}

/// The same but for files and directories below one. Nothing there is run, and no names are made for devices.
pub fn keep_to(directory: BorrowedFd, read_only: bool) -> Result<()> {
    let reads = AccessFs::ReadFile | AccessFs::ReadDir;
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let access = if read_only { reads } else { AccessFs::from_all(ABI::V6) & !never };
    let ruleset = landlock()?.add_rule(PathBeneath::new(directory, access))?;
    ensure!(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced, "the kernel has no landlock");
    Ok(())
}

/// Confines all threads.
pub fn confine(shares: Shares) -> Result<&'static str> {
    let landlocked = landlock().and_then(|ruleset| Ok(ruleset.restrict_self()?)).context("landlock")?;
    let landlocked = landlocked.ruleset != RulesetStatus::NotEnforced;
    // The other one lets no further filter in.
    for program in [without_clone3()?, filter(shares)?] {
        seccompiler::apply_filter_all_threads(&program).context("seccomp")?;
    }
    Ok(if landlocked { "seccomp and landlock" } else { "seccomp" })
}
