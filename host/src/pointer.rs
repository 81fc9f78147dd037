//! What moves a guest's pointer: the mouse at the board, and what a guest has set up beside it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use emu::backend::{Pointer, Pointing};
use emu::{DeviceCell, Event};

/// A movement: right, up, wheel up, and the buttons as [`Event::Pointer`] has them; and where on the screen it ends, if
/// that is known, as [`Event::PointerAt`] has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Motion {
    /// To the right.
    pub dx: i32,
    /// Up.
    pub dy: i32,
    /// The wheel, up.
    pub wheel: i32,
    /// Buttons that are down.
    pub buttons: u8,
    /// Where.
    pub at: Option<(u16, u16)>,
}

/// The devices by which a machine's pointer can be moved.
pub struct Pointers {
    board: Weak<DeviceCell>,
    others: Mutex<Vec<(Weak<DeviceCell>, Option<Pointing>)>>,
    absolute: Arc<AtomicBool>,
}

impl Pointers {
    /// Of a board with this mouse.
    pub fn new(board: Weak<DeviceCell>) -> Arc<Pointers> {
        Arc::new(Pointers { board, others: Mutex::default(), absolute: Arc::default() })
    }

    /// The handle for a further device.
    pub fn add(self: &Arc<Pointers>) -> Box<dyn Pointer> {
        let mut others = self.others.lock().unwrap();
        others.push((Weak::new(), None));
        Box::new(Hand(self.clone(), others.len() - 1))
    }

    /// Whether the guest reads a device that is at a place on the screen.
    pub fn is_absolute(&self) -> Arc<AtomicBool> {
        self.absolute.clone()
    }

    /// Moves the best that the guest reads: what is at a place, what moves, the board's mouse.
    pub fn moves(&self, m: Motion) {
        let best = {
            let others = self.others.lock().unwrap();
            others.iter().filter_map(|(cell, kind)| Some((cell.clone(), (*kind)?))).max_by_key(|(_, kind)| *kind)
        };
        let by = Event::Pointer(m.dx, m.dy, m.wheel, m.buttons);
        let (cell, event) = match (best, m.at) {
            (Some((cell, Pointing::At)), Some((x, y))) => (cell, Event::PointerAt(x, y, m.wheel, m.buttons)),
            // Nobody knows where it is to be.
            (Some((_, Pointing::At)), None) => return,
            (Some((cell, Pointing::By)), _) => (cell, by),
            (None, _) => (self.board.clone(), by),
        };
        if let Some(cell) = cell.upgrade() {
            cell.event(event);
        }
    }
}

/// The pointers as a device knows them; which one it is.
struct Hand(Arc<Pointers>, usize);

impl Pointer for Hand {
    fn attach(&mut self, to: Weak<DeviceCell>) {
        self.0.others.lock().unwrap()[self.1].0 = to;
    }

    fn listens(&mut self, kind: Option<Pointing>) {
        let mut others = self.0.others.lock().unwrap();
        others[self.1].1 = kind;
        let absolute = others.iter().any(|(_, kind)| *kind == Some(Pointing::At));
        self.0.absolute.store(absolute, Ordering::Relaxed);
    }
}
