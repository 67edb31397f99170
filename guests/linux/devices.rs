//! What devices the machine has, and whether they work: loads the drivers that are in `/modules`, lists the PCI devices, reads the
//! disks, takes entropy, writes to the console device, pings the peer on the network.

use crate::print;
use crate::syscall;
use core::ffi::CStr;

/// How many PCI devices are listed.
const MAX_DEVICES: usize = 40;
/// `0000:00:1f.0` and the zero behind it.
const NAME_LEN: usize = 13;

/// Tries everything, if there are drivers.
pub fn look() {
    if load_modules() == 0 {
        return;
    }
    // Where the kernel puts the devices' files.
    syscall::mount(c"devtmpfs", c"/dev", c"devtmpfs");
    list();
    for (name, path) in [("vda", c"/dev/vda"), ("vdb", c"/dev/vdb")] {
        checksum(name, path);
    }
    entropy();
    console();
    ping();
}

/// Loads `/modules/00.ko` and so on. Returns how many there are.
fn load_modules() -> usize {
    for number in 0..100 {
        let mut path = *b"/modules/00.ko\0";
        path[9] += (number / 10) as u8;
        path[10] += (number % 10) as u8;
        let Some(file) = text(&path).and_then(|path| syscall::open(path, false)) else { return number };
        if !syscall::load_module(file) {
            print!("spinup-init: module {number} cannot be loaded\n");
        }
        syscall::close(file);
    }
    100
}

fn text(bytes: &[u8]) -> Option<&CStr> {
    CStr::from_bytes_until_nul(bytes).ok()
}

/// The PCI devices as sysfs has them, in the order of their addresses.
fn list() {
    let mut names = [[0_u8; NAME_LEN]; MAX_DEVICES];
    let count = read_names(&mut names);
    names[..count].sort_unstable();
    for name in &names[..count] {
        let Some(slot) = text(name).and_then(|name| name.to_str().ok()) else { continue };
        let mut rooms = [[0; 16]; 3];
        let [vendor, device, class] = &mut rooms;
        let (vendor, device) = (attribute(slot, "vendor", vendor), attribute(slot, "device", device));
        let class = attribute(slot, "class", class);
        let mut link = [0; 128];
        let driver = driver(slot, &mut link);
        print!("pci {slot} {vendor}:{device} class {class} driver {driver}\n");
    }
}

fn read_names(names: &mut [[u8; NAME_LEN]; MAX_DEVICES]) -> usize {
    // struct linux_dirent64: inode, offset, length of the entry, type, name.
    const LENGTH: usize = 16;
    const NAME: usize = 19;
    let Some(directory) = syscall::open(c"/sys/bus/pci/devices", false) else { return 0 };
    let (mut room, mut count) = ([0; 2048], 0);
    while let Some(len @ 1..) = syscall::read_directory(directory, &mut room) {
        let mut rest = &room[..len];
        while rest.len() > NAME {
            let entry = usize::from(u16::from_le_bytes([rest[LENGTH], rest[LENGTH + 1]]));
            let name = text(&rest[NAME..entry]).map_or(&[][..], CStr::to_bytes);
            if name.len() == NAME_LEN - 1 && count < MAX_DEVICES {
                names[count][..name.len()].copy_from_slice(name);
                count += 1;
            }
            rest = &rest[entry..];
        }
    }
    syscall::close(directory);
    count
}

/// A path of a device: `/sys/bus/pci/devices/SLOT/NAME`.
fn path<'a>(slot: &str, name: &str, room: &'a mut [u8; 80]) -> Option<&'a CStr> {
    let mut len = 0;
    for part in ["/sys/bus/pci/devices/", slot, "/", name, "\0"] {
        room.get_mut(len..len + part.len())?.copy_from_slice(part.as_bytes());
        len += part.len();
    }
    text(room)
}

/// `0x1af4` without its prefix.
fn attribute<'a>(slot: &str, name: &str, room: &'a mut [u8; 16]) -> &'a str {
    let len = path(slot, name, &mut [0; 80]).and_then(|path| syscall::read_file(path, room)).unwrap_or(0);
    let value = core::str::from_utf8(&room[..len]).unwrap_or("?").trim_ascii();
    value.strip_prefix("0x").unwrap_or(value)
}

fn driver<'a>(slot: &str, room: &'a mut [u8; 128]) -> &'a str {
    let len = path(slot, "driver", &mut [0; 80]).and_then(|path| syscall::read_link(path, room)).unwrap_or(0);
    let name = room[..len].rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if name.is_empty() { "none" } else { core::str::from_utf8(name).unwrap_or("?") }
}

/// Reads a whole disk.
fn checksum(name: &str, path: &CStr) {
    let Some(disk) = syscall::open(path, false) else { return };
    let (mut room, mut bytes, mut crc) = ([0; 4096], 0, u32::MAX);
    loop {
        match syscall::read(disk, &mut room) {
            Some(0) => break,
            Some(len) => {
                crc = crc32(crc, &room[..len]);
                bytes += len;
            }
            None => {
                print!("{name}: cannot be read from byte {bytes} on\n");
                break;
            }
        }
    }
    syscall::close(disk);
    print!("{name}: {bytes} bytes, CRC-32 {:08x}\n", !crc);
}

/// CRC-32 as in Ethernet and gzip (RFC 1952, 8), without its last step.
fn crc32(crc: u32, bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut value, mut bit) = (byte as u32, 0);
            while bit < 8 {
                value = if value & 1 != 0 { value >> 1 ^ POLYNOMIAL } else { value >> 1 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    bytes.iter().fold(crc, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

fn entropy() {
    let mut room = [0; 8];
    if syscall::read_file(c"/dev/hwrng", &mut room) == Some(room.len()) {
        print!("hwrng: {:016x}\n", u64::from_be_bytes(room));
    }
}

fn console() {
    if let Some(console) = syscall::open(c"/dev/hvc0", true) {
        syscall::write(console, b"spinup-init: hello by virtio\n");
        syscall::close(console);
        print!("hvc0: written\n");
    }
}

/// Gives eth0 the address 10.0.2.15, and pings 10.0.2.2.
fn ping() {
    const DATAGRAM: u64 = 2;
    const RAW: u64 = 3;
    const ICMP: u64 = 1;
    let Some(control) = syscall::socket(DATAGRAM, 0) else { return };
    if !bring_up(control) {
        return;
    }
    let Some(socket) = syscall::socket(RAW, ICMP) else { return };
    syscall::set_receive_timeout(socket, 2);
    // Type, code, checksum, identifier, sequence number (RFC 792).
    let request = [8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1];
    let sent = syscall::send_to(socket, &request, &internet_address([10, 0, 2, 2]));
    let mut room = [0; 128];
    let answered = sent && (0..4).any(|_| {
        let len = syscall::read(socket, &mut room).unwrap_or(0);
        // Behind the header of IP, an echo reply to this request.
        len >= 28 && room[20] == 0 && room[24..28] == request[4..]
    });
    print!("eth0: 10.0.2.2 {}\n", if answered { "answers" } else { "does not answer" });
}

fn bring_up(control: u64) -> bool {
    const SIOCSIFADDR: u64 = 0x8916;
    const SIOCSIFNETMASK: u64 = 0x891c;
    const SIOCSIFFLAGS: u64 = 0x8914;
    const UP_AND_RUNNING: u8 = 0x41;
    let request = |address: &[u8]| {
        let mut ifreq = [0; 40];
        ifreq[..4].copy_from_slice(b"eth0");
        ifreq[16..][..address.len()].copy_from_slice(address);
        ifreq
    };
    let up = [
        (SIOCSIFADDR, request(&internet_address([10, 0, 2, 15]))),
        (SIOCSIFNETMASK, request(&internet_address([255, 255, 255, 0]))),
        (SIOCSIFFLAGS, request(&[UP_AND_RUNNING])),
    ];
    up.into_iter().all(|(number, mut ifreq)| syscall::interface_ioctl(control, number, &mut ifreq))
}

/// `struct sockaddr_in`.
fn internet_address(address: [u8; 4]) -> [u8; 16] {
    const AF_INET: u8 = 2;
    let mut bytes = [0; 16];
    bytes[0] = AF_INET;
    bytes[4..8].copy_from_slice(&address);
    bytes
}
