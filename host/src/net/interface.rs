//! The host's interfaces: what taps and bridges need of them before the machine starts, and what the broker undoes. Nothing
//! here gives an interface an address or takes one from it.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Bytes of an interface's name, with the terminator.
const NAME: usize = 16;

#[cfg(target_os = "linux")]
mod numbers {
    /// Bytes of struct ifreq behind the name.
    pub const REST: usize = 24;
    pub const SIOCGIFFLAGS: u64 = 0x8913;
    pub const SIOCSIFFLAGS: u64 = 0x8914;
    /// BRCTL_GET_PORT_LIST of the old interface, which needs no sysfs.
    pub const SIOCDEVPRIVATE: u64 = 0x89f0;
    pub const BRCTL_GET_PORT_LIST: usize = 7;
    pub const SIOCBRADDBR: u64 = 0x89a0;
    pub const SIOCBRDELBR: u64 = 0x89a1;
    pub const SIOCBRADDIF: u64 = 0x89a2;
}

#[cfg(not(target_os = "linux"))]
mod numbers {
    pub const REST: usize = 16;
    pub const SIOCGIFFLAGS: u64 = 0xc020_6911;
    pub const SIOCSIFFLAGS: u64 = 0x8020_6910;
    pub const SIOCIFCREATE2: u64 = 0xc020_697c;
    pub const SIOCIFDESTROY: u64 = 0x8020_6979;
    pub const SIOCSDRVSPEC: u64 = 0x8028_697b;
    pub const SIOCGDRVSPEC: u64 = 0xc028_697b;
    pub const BRDGADD: usize = 0;
    pub const BRDGGIFS: usize = 6;

    /// struct ifdrv.
    #[repr(C)]
    pub struct Driver {
        pub name: [u8; 16],
        pub command: usize,
        pub length: usize,
        pub data: *mut std::ffi::c_void,
    }

    /// struct ifbreq; the kernel fills in the rest.
    #[repr(C)]
    pub struct Member {
        pub name: [u8; 16],
        pub rest: [u32; 16],
    }

    /// struct ifbifconf.
    #[repr(C)]
    pub struct Members {
        pub length: u32,
        pub members: *mut Member,
    }

    // As net/if.h and net/if_bridgevar.h have them, and as the sizes in the request codes say.
    const _: () = assert!(size_of::<super::Request>() == 32 && SIOCIFCREATE2 >> 16 & 0x1fff == 32);
    const _: () = assert!(size_of::<Driver>() == 40 && SIOCSDRVSPEC >> 16 & 0x1fff == 40);
    const _: () = assert!(size_of::<Member>() == 80 && size_of::<Members>() == 16);
}

use numbers::*;

/// struct ifreq: a name, and what the request is about.
#[repr(C, align(8))]
struct Request {
    name: [u8; NAME],
    rest: [u8; REST],
}

impl Request {
    fn of(name: &str) -> io::Result<Request> {
        let mut request = Request { name: [0; NAME], rest: [0; REST] };
        if name.is_empty() || name.len() >= NAME || name.contains(['\0', '/']) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "that is no interface's name"));
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }
}

/// A socket to make requests with.
fn requests() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// Makes a request whose argument is what it is defined with.
fn ask<T>(number: u64, argument: &mut T) -> io::Result<i32> {
    let fd = requests()?;
    // SAFETY: the callers pass the structure of the request, which outlives the call.
    #[expect(unsafe_code, reason = "ioctl(2)")]
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), number as _, std::ptr::from_mut(argument)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn flags(name: &str) -> io::Result<Request> {
    let mut request = Request::of(name)?;
    ask(SIOCGIFFLAGS, &mut request)?;
    Ok(request)
}

/// Whether there is such an interface.
pub(crate) fn exists(name: &str) -> bool {
    flags(name).is_ok()
}

fn set_up(name: &str, up: bool) -> io::Result<()> {
    let mut request = flags(name)?;
    let flags = i16::from_ne_bytes([request.rest[0], request.rest[1]]);
    let bit = libc::IFF_UP as i16;
    let flags = if up { flags | bit } else { flags & !bit };
    request.rest[..2].copy_from_slice(&flags.to_ne_bytes());
    ask(SIOCSIFFLAGS, &mut request).map(drop)
}

/// Brings an interface up.
pub(crate) fn up(name: &str) -> io::Result<()> {
    set_up(name, true)
}

/// Makes a bridge, and brings it up.
#[cfg(target_os = "linux")]
pub(crate) fn create_bridge(name: &str) -> io::Result<()> {
    ask(SIOCBRADDBR, &mut Request::of(name)?.name)?;
    up(name)
}

/// Removes a bridge.
#[cfg(target_os = "linux")]
fn remove_bridge(name: &str) -> io::Result<()> {
    set_up(name, false)?;
    ask(SIOCBRDELBR, &mut Request::of(name)?.name).map(drop)
}

/// Makes an interface a member of a bridge.
#[cfg(target_os = "linux")]
pub(crate) fn join(bridge: &str, member: &str) -> io::Result<()> {
    let mut request = Request::of(bridge)?;
    let index = nix::net::if_::if_nametoindex(member)?;
    request.rest[..4].copy_from_slice(&index.to_ne_bytes());
    ask(SIOCBRADDIF, &mut request).map(drop)
}

/// How many members a bridge has.
#[cfg(target_os = "linux")]
fn members(bridge: &str) -> io::Result<usize> {
    let mut indices = [0i32; 1024];
    let mut words = [BRCTL_GET_PORT_LIST, indices.as_mut_ptr() as usize, indices.len(), 0];
    let mut request = Request::of(bridge)?;
    request.rest[..8].copy_from_slice(&(words.as_mut_ptr() as usize as u64).to_ne_bytes());
    ask(SIOCDEVPRIVATE, &mut request)?;
    // It says how many there is room for; a port that is not there has no index.
    Ok(indices.iter().filter(|index| **index != 0).count())
}

/// Makes an interface that the kernel makes by name: `tap` for the next one, or `tap7`. Returns its name.
#[cfg(not(target_os = "linux"))]
pub(crate) fn create(name: &str) -> io::Result<String> {
    let mut request = Request::of(name)?;
    ask(SIOCIFCREATE2, &mut request)?;
    let name = request.name.split(|b| *b == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Removes an interface.
#[cfg(not(target_os = "linux"))]
pub(crate) fn destroy(name: &str) -> io::Result<()> {
    ask(SIOCIFDESTROY, &mut Request::of(name)?).map(drop)
}

/// Makes a bridge, and brings it up.
#[cfg(not(target_os = "linux"))]
pub(crate) fn create_bridge(name: &str) -> io::Result<()> {
    create(name)?;
    up(name)
}

#[cfg(not(target_os = "linux"))]
fn remove_bridge(name: &str) -> io::Result<()> {
    destroy(name)
}

/// Makes an interface a member of a bridge.
#[cfg(not(target_os = "linux"))]
pub(crate) fn join(bridge: &str, member: &str) -> io::Result<()> {
    let mut member = Member { name: Request::of(member)?.name, rest: [0; 16] };
    let mut driver = Driver {
        name: Request::of(bridge)?.name,
        command: BRDGADD,
        length: size_of::<Member>(),
        data: std::ptr::from_mut(&mut member).cast(),
    };
    ask(SIOCSDRVSPEC, &mut driver).map(drop)
}

/// How many members a bridge has.
#[cfg(not(target_os = "linux"))]
fn members(bridge: &str) -> io::Result<usize> {
    let mut room: Vec<Member> = (0..1024).map(|_| Member { name: [0; NAME], rest: [0; 16] }).collect();
    let mut list = Members { length: size_of_val(&room[..]) as u32, members: room.as_mut_ptr() };
    let mut driver = Driver {
        name: Request::of(bridge)?.name,
        command: BRDGGIFS,
        length: size_of::<Members>(),
        data: std::ptr::from_mut(&mut list).cast(),
    };
    ask(SIOCGDRVSPEC, &mut driver)?;
    Ok(list.length as usize / size_of::<Member>())
}

/// Removes a bridge if it has no members any more. False if it has.
pub(crate) fn remove_empty_bridge(name: &str) -> bool {
    match members(name) {
        Ok(0) => {
            let _ = remove_bridge(name);
            true
        }
        Ok(_) => false,
        // Somebody else has removed it.
        Err(_) => true,
    }
}
