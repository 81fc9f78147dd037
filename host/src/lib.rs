//! The host side: consoles, disk images, networks, displays and the event loop that drives them.
