//! Doorbells that the kernel takes (KVM_IOEVENTFD): the processor goes on, and a thread here tells the device.
//!
//! Only those that their device hands over ([`emu::Doorbell::handoff`]). Each has an eventfd for life; what moves with
//! the region is its place in the kernel, so that a ring is heard whatever the guest does to the BAR after it. Where the
//! kernel refuses a place, since two doorbells are at one address or its table is full, the write stays an exit and
//! rings on the processor's thread.
//!
//! The processors' pause ends with [`Bells::hear`]: what rang before it has rung when the pause is there.

use std::fs::File;
use std::io::{Error, Read, Result, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::{Arc, Mutex, Weak};

use emu::{Doorbell, Map, MapListener};
use kvm_bindings::{
    kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio,
};
use kvm_ioctls::VmFd;

/// _IOW(KVMIO, 0x79, struct kvm_ioeventfd).
const KVM_IOEVENTFD: libc::c_ulong = 0x4040_ae79;

type Ring = Arc<dyn Fn() + Send + Sync>;

/// Where the kernel looks for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    addr: u64,
    port: bool,
    width: u8,
    value: Option<u64>,
}

impl Place {
    fn of(bell: &Doorbell) -> Place {
        Place { addr: bell.addr, port: bell.port, width: bell.width, value: bell.value }
    }
}

/// A doorbell's eventfd.
struct Bell {
    ring: Ring,
    rang: File,
    /// Where it is in the kernel, if it is there.
    place: Mutex<Option<Place>>,
}

impl Bell {
    /// Rings if the kernel says that the guest did.
    fn hear(&self) {
        if (&self.rang).read(&mut [0; 8]).is_ok() {
            (self.ring)();
        }
    }
}

/// The doorbells of a virtual machine.
pub(super) struct Bells {
    vm: Arc<VmFd>,
    /// Grows only. A leaf lock.
    bells: Mutex<Vec<Arc<Bell>>>,
    /// There are more of them.
    more: File,
    /// Held from the look at an eventfd until its device has been told.
    hearing: Mutex<()>,
}

impl Bells {
    /// None yet, and the thread that hears them. It ends with the value.
    pub(super) fn start(vm: Arc<VmFd>) -> Result<Arc<Bells>> {
        let more = eventfd()?;
        let stirred = more.try_clone()?;
        let bells = Arc::new(Bells { vm, bells: Mutex::default(), more, hearing: Mutex::default() });
        let weak = Arc::downgrade(&bells);
        std::thread::Builder::new().name("kvm doorbells".to_owned()).spawn(move || work(&weak, &stirred))?;
        Ok(bells)
    }

    /// Tells the devices of all that the guest has rung so far. No device's lock may be held.
    pub(super) fn hear(&self) {
        let bells = self.bells.lock().unwrap().clone();
        let _hearing = self.hearing.lock().unwrap();
        bells.iter().for_each(|bell| bell.hear());
    }

    /// Has the kernel take the writes at `place`, or no longer.
    #[expect(unsafe_code, reason = "KVM_IOEVENTFD, which kvm-ioctls has for fewer places")]
    fn set(&self, bell: &Bell, place: Place, on: bool) -> Result<()> {
        let flag = |set: bool, nr: u32| u32::from(set) << nr;
        let request = kvm_ioeventfd {
            datamatch: place.value.unwrap_or_default(),
            addr: place.addr,
            len: place.width.into(),
            fd: bell.rang.as_raw_fd(),
            flags: flag(place.value.is_some(), kvm_ioeventfd_flag_nr_datamatch)
                | flag(place.port, kvm_ioeventfd_flag_nr_pio)
                | flag(!on, kvm_ioeventfd_flag_nr_deassign),
            ..Default::default()
        };
        // SAFETY: the kernel reads the structure and keeps a reference of its own to the eventfd.
        match unsafe { libc::ioctl(self.vm.as_raw_fd(), KVM_IOEVENTFD as _, &raw const request) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    }
}

impl Drop for Bells {
    fn drop(&mut self) {
        stir(&self.more);
    }
}

impl MapListener for Bells {
    fn changed(&self, map: &Map) {
        let mut bells = self.bells.lock().unwrap();
        let wanted = || map.doorbells().iter().filter(|d| d.handoff);
        // Those that go make room first.
        for bell in &*bells {
            let mut at = bell.place.lock().unwrap();
            let stays = |place: Place| wanted().any(|d| Place::of(d) == place && Arc::ptr_eq(&d.ring, &bell.ring));
            if let Some(place) = at.take_if(|place| !stays(*place)) {
                let _ = self.set(bell, place, false);
            }
        }
        for d in wanted() {
            let known = bells.iter().find(|bell| Arc::ptr_eq(&d.ring, &bell.ring));
            let bell = match known {
                Some(bell) => bell.clone(),
                // Without a descriptor it rings on the processor's thread.
                None => match eventfd() {
                    Ok(rang) => {
                        let bell = Arc::new(Bell { ring: d.ring.clone(), rang, place: Mutex::default() });
                        bells.push(bell.clone());
                        stir(&self.more);
                        bell
                    }
                    Err(_) => continue,
                },
            };
            let mut at = bell.place.lock().unwrap();
            if at.is_none() && self.set(&bell, Place::of(d), true).is_ok() {
                *at = Some(Place::of(d));
            }
        }
    }
}

/// The thread.
fn work(bells: &Weak<Bells>, stirred: &File) {
    loop {
        let Some(all) = bells.upgrade().map(|b| b.bells.lock().unwrap().clone()) else { return };
        let files = all.iter().map(|bell| &bell.rang).chain([stirred]);
        let mut fds: Vec<_> =
            files.map(|f| libc::pollfd { fd: f.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
        poll(&mut fds);
        let _ = { stirred }.read(&mut [0; 8]);
        let Some(bells) = bells.upgrade() else { return };
        let _hearing = bells.hearing.lock().unwrap();
        all.iter().zip(&fds).filter(|(_, fd)| fd.revents != 0).for_each(|(bell, _)| bell.hear());
    }
}

fn stir(eventfd: &File) {
    // It fails only when the counter is full, and then it stirs already.
    let _ = { eventfd }.write(&1u64.to_ne_bytes());
}

#[expect(unsafe_code, reason = "eventfd(2)")]
fn eventfd() -> Result<File> {
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Waits for one of them.
#[expect(unsafe_code, reason = "poll(2)")]
fn poll(fds: &mut [libc::pollfd]) {
    // SAFETY: the kernel reads and writes the slice. A signal ends the call, and the caller comes again.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
}
