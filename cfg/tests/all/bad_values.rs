//! What is said of keys and values that a machine cannot have: each fault once, with its place and remedy.

use crate::common::refuses;

#[test]
fn keys_that_do_not_exist() {
    refuses(
        "unknown_key",
        &[("guest.toml", "name = 'fw1'\nmemroy = '1G'\n")],
        &["guest.toml:2:1: memroy: unknown key \"memroy\"; allowed: {top}; did you mean \"memory\"?"],
    );
    refuses(
        "unknown_key_far_from_all",
        &[("guest.toml", "name = 'fw1'\ncolour = 'red'\n")],
        &["guest.toml:2:1: colour: unknown key \"colour\"; allowed: {top}"],
    );
    refuses(
        "unknown_section",
        &[("guest.toml", "name = 'fw1'\n[bot]\norder = ['cd']\n")],
        &["guest.toml:2:2: bot: unknown section \"bot\"; allowed: {top}; did you mean [boot]?"],
    );
    refuses(
        "unknown_array",
        &[("guest.toml", "name = 'fw1'\n[[disks]]\npath = 'disk.img'\n")],
        &["guest.toml:2:3: disks: unknown section \"disks\"; allowed: {top}; did you mean [[disk]]?"],
    );
    refuses(
        "key_of_a_section_at_the_top",
        &[("guest.toml", "name = 'fw1'\nkernel = 'disk.img'\n")],
        &["guest.toml:2:1: kernel: unknown key \"kernel\"; allowed: {top}; did you mean \"boot.kernel\"?"],
    );
    refuses(
        "key_of_the_top_in_a_section",
        &[("guest.toml", "[boot]\nname = 'fw1'\n")],
        &[
            "guest.toml:1:1: name: required key is missing; allowed: 1 to 229 letters, digits, \"-\", \"_\" \
             and \".\"",
            "guest.toml:2:1: boot.name: \"name\" belongs at the top, before the first [section]; allowed: \
             order, once, menu, serial, kernel, initrd, args, firmware, vars",
        ],
    );
    refuses(
        "unknown_key_in_an_element",
        &[("guest.toml", "name = 'fw1'\n[[disk]]\npath = 'disk.img'\n[[disk]]\npaht = 'disk.img'\n")],
        &[
            "guest.toml:4:3: disk.1.path: required key is missing; allowed: the path of a file or disk that \
             can be read",
            "guest.toml:5:1: disk.1.paht: unknown key \"paht\"; allowed: path, model, format, readonly, \
             cache, snapshot, on_error, slot, unit; did you mean \"path\"?",
        ],
    );
    refuses(
        "key_of_another_model",
        &[("guest.toml", "name = 'fw1'\n[[disk]]\npath = 'disk.img'\nmodel = 'ide'\nqueues = 4\n")],
        &["guest.toml:5:1: disk.0.queues: \"queues\" needs model = \"nvme\"; allowed: path, model, \
             format, readonly, cache, snapshot, on_error, slot, unit"],
    );
    refuses(
        "key_of_an_unknown_model",
        &[("guest.toml", "name = 'fw1'\n[[disk]]\npath = 'disk.img'\nmodel = 'nvem'\nqueues = 4\nqeues = 4\n")],
        &[
            "guest.toml:4:9: disk.0.model: unknown model \"nvem\"; allowed: ahci, ide, nvme; did you mean \"nvme\"?",
            "guest.toml:6:1: disk.0.qeues: unknown key \"qeues\"; allowed: path, model, format, readonly, cache, snapshot, on_error, slot, unit",
        ],
    );
    refuses(
        "non_ascii_key",
        &[("guest.toml", "name = 'fw1'\n'größe' = 1\n")],
        &["guest.toml:2:1: größe: unknown key \"größe\"; allowed: {top}"],
    );
    refuses(
        "wide_characters_before_the_fault",
        &[("guest.toml", "name = 'fw1'\nscreen = { '日本語' = 1, vnc = 'host:0' }\n")],
        &[
            "guest.toml:2:12: screen.日本語: unknown key \"日本語\"; allowed: model, backend, rom, vnc, vnc_socket, \
             vnc_remote, vnc_password, vnc_password_file, vnc_view_password_file, vnc_readonly, vnc_wait, keyboard, keyboard_file, slot",
            "guest.toml:2:29: screen.vnc: \"host:0\" is not an address; allowed: \"PORT\" or \"HOST:PORT\", \
             port 1 to 65535",
        ],
    );
    refuses(
        "space_in_a_key",
        &[("guest.toml", "name = 'fw1'\n'cp us' = 1\n")],
        &["guest.toml:2:1: a name cannot have \" \" in it; allowed: letters, digits, \"-\" and \"_\""],
    );
    refuses(
        "empty_key",
        &[("guest.toml", "name = 'fw1'\n'' = 1\n")],
        &["guest.toml:2:1: a name is empty; allowed: letters, digits, \"-\" and \"_\""],
    );
}

#[test]
fn values_of_the_wrong_type() {
    refuses(
        "string_for_an_integer",
        &[("guest.toml", "name = 'fw1'\ncpus = '2'\n")],
        &["guest.toml:2:8: cpus: expected an integer, found the string \"2\"; allowed: 1 to 32; did you \
             mean 2?"],
    );
    refuses(
        "word_for_an_integer",
        &[("guest.toml", "name = 'fw1'\ncpus = 'two'\n")],
        &["guest.toml:2:8: cpus: expected an integer, found the string \"two\"; allowed: 1 to 32"],
    );
    refuses(
        "float_for_an_integer",
        &[("guest.toml", "name = 'fw1'\ncpus = 1.5\n")],
        &["guest.toml:2:8: cpus: expected an integer, found the number 1.5; allowed: 1 to 32"],
    );
    refuses(
        "integer_for_a_string",
        &[("guest.toml", "name = 5\n")],
        &["guest.toml:1:8: name: expected a name, found the integer 5; allowed: 1 to 229 letters, digits, \
             \"-\", \"_\" and \".\"; did you mean \"5\"?"],
    );
    refuses(
        "integer_for_a_boolean",
        &[("guest.toml", "name = 'fw1'\n[acpi]\nenabled = 1\n")],
        &["guest.toml:3:11: acpi.enabled: expected true or false, found the integer 1; allowed: true, \
             false; did you mean true?"],
    );
    refuses(
        "string_for_a_boolean",
        &[("guest.toml", "name = 'fw1'\n[acpi]\nenabled = 'no'\n")],
        &["guest.toml:3:11: acpi.enabled: expected true or false, found the string \"no\"; allowed: true, \
             false; did you mean false?"],
    );
    refuses(
        "boolean_for_a_word",
        &[("guest.toml", "name = 'fw1'\n[quirks]\nclflush = true\n")],
        &["guest.toml:3:11: quirks.clflush: expected a word, found the boolean true; allowed: auto, on, off"],
    );
    refuses(
        "date_for_a_string",
        &[("guest.toml", "name = 2009-11-12\n")],
        &["guest.toml:1:8: name: expected a name, found the date 2009-11-12; allowed: 1 to 229 letters, \
             digits, \"-\", \"_\" and \".\"; did you mean \"2009-11-12\"?"],
    );
    refuses(
        "list_for_a_value",
        &[("guest.toml", "name = 'fw1'\ncpus = [1, 2]\n")],
        &["guest.toml:2:9: cpus: expected an integer, found a list; allowed: 1 to 32"],
    );
    refuses(
        "section_for_a_value",
        &[("guest.toml", "name = 'fw1'\n[cpus]\nsockets = 1\n")],
        &["guest.toml:2:2: cpus: expected an integer, found a section; allowed: 1 to 32"],
    );
    refuses(
        "value_for_a_section",
        &[("guest.toml", "name = 'fw1'\nboot = 'cd'\n")],
        &["guest.toml:2:1: boot: expected a section, found the string \"cd\"; allowed: [boot]"],
    );
    refuses(
        "value_for_an_array",
        &[("guest.toml", "name = 'fw1'\ndisk = 'disk.img'\n")],
        &["guest.toml:2:1: disk: expected tables, found the string \"disk.img\"; allowed: [[disk]], \
             numbered 0 to 31"],
    );
    refuses(
        "list_of_strings_for_an_array",
        &[("guest.toml", "name = 'fw1'\ndisk = ['disk.img']\n")],
        &["guest.toml:2:1: disk: expected tables, found a list; allowed: [[disk]], numbered 0 to 31"],
    );
    refuses(
        "table_for_an_array",
        &[("guest.toml", "name = 'fw1'\n[disk]\npath = 'disk.img'\n")],
        &["guest.toml:2:2: disk: there can be several, and each is its own table; allowed: [[disk]], \
             numbered 0 to 31"],
    );
    refuses(
        "array_for_a_table",
        &[("guest.toml", "name = 'fw1'\n[[boot]]\nargs = 'x'\n")],
        &["guest.toml:2:3: boot: there can be only one; allowed: [boot]"],
    );
}

#[test]
fn values_that_are_not_allowed() {
    refuses(
        "out_of_range",
        &[("guest.toml", "name = 'fw1'\ncpus = 33\n")],
        &["guest.toml:2:8: cpus: 33 is out of range; allowed: 1 to 32"],
    );
    refuses(
        "zero_cpus",
        &[("guest.toml", "name = 'fw1'\ncpus = 0\n")],
        &["guest.toml:2:8: cpus: 0 is out of range; allowed: 1 to 32"],
    );
    refuses(
        "negative",
        &[("guest.toml", "name = 'fw1'\ncpus = -1\n")],
        &["guest.toml:2:8: cpus: -1 is out of range; allowed: 1 to 32"],
    );
    refuses(
        "size_with_a_bad_unit",
        &[("guest.toml", "name = 'fw1'\nmemory = '256Q'\n")],
        &["guest.toml:2:10: memory: \"256Q\" has an unknown unit \"Q\"; allowed: 1M to 1T, as a number with \
             B, K, M, G or T"],
    );
    refuses(
        "size_that_is_no_number",
        &[("guest.toml", "name = 'fw1'\nmemory = 'lots'\n")],
        &["guest.toml:2:10: memory: \"lots\" is not a size; allowed: 1M to 1T, as a number with B, K, M, G \
             or T"],
    );
    refuses(
        "size_out_of_range",
        &[("guest.toml", "name = 'fw1'\nmemory = '512K'\n")],
        &["guest.toml:2:10: memory: \"512K\" is out of range; allowed: 1M to 1T, as a number with B, K, M, \
             G or T"],
    );
    refuses(
        "size_past_64_bits",
        &[("guest.toml", "name = 'fw1'\nmemory = '99999999T'\n")],
        &["guest.toml:2:10: memory: \"99999999T\" is out of range; allowed: 1M to 1T, as a number with B, \
             K, M, G or T"],
    );
    refuses(
        "unknown_profile",
        &[("guest.toml", "name = 'fw1'\nprofile = 'hyperv-2008r2'\n")],
        &["guest.toml:2:11: profile: unknown profile \"hyperv-2008r2\"; allowed: pc, bhyve, hyper-v-2008r2, \
             xenserver-5.5, esxi-4.0; did you mean \"hyper-v-2008r2\"?"],
    );
    refuses(
        "unknown_guest",
        &[("guest.toml", "name = 'fw1'\nguest = 'opnebsd-4.6'\n")],
        &["guest.toml:2:9: guest: unknown guest \"opnebsd-4.6\"; allowed: freebsd, netbsd, openbsd; did you \
             mean \"openbsd\"?"],
    );
    refuses(
        "unknown_model",
        &[("guest.toml", "name = 'fw1'\n[[nic]]\nmodel = 'rtl8193'\n")],
        &["guest.toml:3:9: nic.0.model: unknown model \"rtl8193\"; allowed: dec21140, e1000, rtl8139, \
             virtio-net; did you mean \"rtl8139\"?"],
    );
    refuses(
        "model_of_another_class",
        &[("guest.toml", "name = 'fw1'\n[[disk]]\npath = 'disk.img'\nmodel = 'rtl8193'\n")],
        &["guest.toml:4:9: disk.0.model: unknown model \"rtl8193\"; allowed: ahci, ide, nvme"],
    );
    refuses(
        "unknown_word",
        &[("guest.toml", "name = 'fw1'\nclock = 'instruction'\n")],
        &["guest.toml:2:9: clock: unknown clock \"instruction\"; allowed: real, instructions; did you mean \
             \"instructions\"?"],
    );
    refuses(
        "unknown_word_in_a_list",
        &[("guest.toml", "name = 'fw1'\n[boot]\norder = [\n  'disk',\n  'cdrom',\n  'tape',\n]\n")],
        &[
            "guest.toml:5:3: boot.order: unknown word \"cdrom\"; allowed: floppy, cd, disk, net; did you mean \
             \"cd\"?",
            "guest.toml:6:3: boot.order: unknown word \"tape\"; allowed: floppy, cd, disk, net",
        ],
    );
    refuses(
        "model_key_out_of_range",
        &[("guest.toml", "name = 'fw1'\n[[disk]]\npath = 'disk.img'\nmodel = 'nvme'\nqueues = 17\n")],
        &["guest.toml:5:10: disk.0.queues: 17 is out of range; allowed: 1 to 16"],
    );
    refuses(
        "bad_name",
        &[("guest.toml", "name = 'fire wall'\n")],
        &["guest.toml:1:8: name: \"fire wall\" is not a name; allowed: 1 to 229 letters, digits, \"-\", \
             \"_\" and \".\""],
    );
    refuses(
        "name_that_looks_like_an_option",
        &[("guest.toml", "name = '-fw1'\n")],
        &["guest.toml:1:8: name: \"-fw1\" is not a name; allowed: 1 to 229 letters, digits, \"-\", \"_\" \
             and \".\""],
    );
    refuses(
        "bad_mac",
        &[("guest.toml", "name = 'fw1'\n[[nic]]\nmac = '00:a0:98:12:34'\n")],
        &["guest.toml:3:7: nic.0.mac: \"00:a0:98:12:34\" is not a MAC address; allowed: six bytes as \
             \"00:a0:98:12:34:56\", not multicast"],
    );
    refuses(
        "multicast_mac",
        &[("guest.toml", "name = 'fw1'\n[[nic]]\nmac = '01:00:5e:12:34:56'\n")],
        &["guest.toml:3:7: nic.0.mac: \"01:00:5e:12:34:56\" is a multicast address; allowed: six bytes as \
             \"00:a0:98:12:34:56\", not multicast"],
    );
    refuses(
        "bad_slot",
        &[("guest.toml", "name = 'fw1'\n[[nic]]\nslot = '0:32:0'\n")],
        &["guest.toml:3:8: nic.0.slot: \"0:32:0\" is not a PCI slot; allowed: \"3\", \"3:0\" \
             (slot:function) or \"0:3:0\" (bus:slot:function)"],
    );
    refuses(
        "bad_duration",
        &[("guest.toml", "name = 'fw1'\n[autostart]\ndelay = '5 seconds'\n")],
        &["guest.toml:3:9: autostart.delay: \"5 seconds\" is not a duration; allowed: a number with us, ms, \
             s, m or h, as \"500ms\""],
    );
    refuses(
        "duration_without_a_unit",
        &[("guest.toml", "name = 'fw1'\n[autostart]\ndelay = 5\n")],
        &["guest.toml:3:9: autostart.delay: expected a duration, found the integer 5; allowed: a number \
             with us, ms, s, m or h, as \"500ms\""],
    );
    refuses(
        "bad_uuid",
        &[("guest.toml", "name = 'fw1'\nuuid = '1234'\n")],
        &["guest.toml:2:8: uuid: \"1234\" is not a UUID; allowed: 32 hexadecimal digits as \
             \"c0ffee00-1234-5678-9abc-def012345678\""],
    );
    refuses(
        "bad_port",
        &[("guest.toml", "name = 'fw1'\n[[serial]]\nbackend = 'tcp'\naddress = 'localhost:70000'\n")],
        &["guest.toml:4:11: serial.0.address: \"localhost:70000\" is not an address; allowed: \"PORT\" or \
             \"HOST:PORT\", port 1 to 65535"],
    );
    refuses(
        "control_character_in_a_text",
        &[("guest.toml", "name = \"fw1\"\n[boot]\nkernel = \"disk.img\"\nargs = \"a\\u0000b\"\n")],
        &["guest.toml:4:8: boot.args: control character U+0000 in the text"],
    );
}

#[test]
fn paths() {
    refuses(
        "missing_disk",
        &[("guest.toml", "name = 'fw1'\n[[disk]]\npath = 'dsik.img'\n")],
        &["guest.toml:3:8: disk.0.path: cannot read \"dsik.img\": No such file or directory; allowed: the \
             path of a file or disk that can be read; did you mean \"disk.img\"?"],
    );
    refuses(
        "missing_disk_in_a_missing_directory",
        &[("guest.toml", "name = 'fw1'\n[[disk]]\npath = 'images/openbsd.img'\n")],
        &["guest.toml:3:8: disk.0.path: cannot read \"images/openbsd.img\": No such file or directory; \
             allowed: the path of a file or disk that can be read"],
    );
    refuses(
        "directory_for_a_disk",
        &[("guest.toml", "name = 'fw1'\n[[disk]]\npath = '.'\n")],
        &["guest.toml:3:8: disk.0.path: \".\" is a directory; allowed: the path of a file or disk that can \
             be read"],
    );
    // Elsewhere disks are character devices too.
    #[cfg(target_os = "linux")]
    refuses(
        "character_device_for_a_disk",
        &[("guest.toml", "name = 'fw1'\n[[disk]]\npath = '/dev/null'\n")],
        &["guest.toml:3:8: disk.0.path: \"/dev/null\" is a device, but not a disk; allowed: the path of a \
             file or disk that can be read"],
    );
    refuses(
        "file_in_the_way_of_a_directory",
        &[("guest.toml", "name = 'fw1'\n[[serial]]\nbackend = 'file'\npath = 'disk.img/log'\n")],
        &["guest.toml:4:8: serial.0.path: \"disk.img\" is not a directory; allowed: a path in a directory \
             that exists"],
    );
    refuses(
        "no_directory_for_a_socket",
        &[("guest.toml", "name = 'fw1'\n[[serial]]\nbackend = 'socket'\npath = 'run/fw1.sock'\n")],
        &["guest.toml:4:8: serial.0.path: cannot use directory \"run\": No such file or directory; allowed: \
             a path in a directory that exists"],
    );
    refuses(
        "empty_path",
        &[("guest.toml", "name = 'fw1'\n[boot]\nfirmware = ''\n")],
        &["guest.toml:3:12: boot.firmware: the path is empty; allowed: the path of a file or disk that can \
             be read"],
    );
}

#[test]
fn keys_that_do_not_go_together() {
    refuses(
        "name_missing",
        &[("guest.toml", "cpus = 2\n")],
        &["guest.toml:1:1: name: required key is missing; allowed: 1 to 229 letters, digits, \"-\", \"_\" \
             and \".\""],
    );
    refuses(
        "disk_without_a_path",
        &[("guest.toml", "name = 'fw1'\n[[disk]]\nmodel = 'ide'\n[[disk]]\nslot = 4\n")],
        &[
            "guest.toml:2:3: disk.0.path: required key is missing; allowed: the path of a file or disk that \
             can be read",
            "guest.toml:4:3: disk.1.path: required key is missing; allowed: the path of a file or disk that \
             can be read",
        ],
    );
    refuses(
        "serial_without_a_backend",
        &[("guest.toml", "name = 'fw1'\n[[serial]]\n")],
        &["guest.toml:2:3: serial.0.backend: required key is missing; allowed: stdio, console, socket, \
             pty, tty, nmdm, tcp, file, none"],
    );
    refuses(
        "slot_used_twice",
        &[(
            "guest.toml",
            "name = 'fw1'\n[[disk]]\npath = 'disk.img'\nslot = 3\n[[nic]]\nslot = '0:3:0'\n[[nic]]\nslot = \
         '0:3:1'\n",
        )],
        &["guest.toml:6:8: nic.0.slot: PCI slot 0:3:0 is already used by disk.0.slot at guest.toml:4:8"],
    );
    refuses(
        "mac_used_twice",
        &[("guest.toml", "name = 'fw1'\n[[nic]]\nmac = '00:a0:98:00:00:0a'\n[[nic]]\nmac = '00-A0-98-00-00-0A'\n")],
        &["guest.toml:5:7: nic.1.mac: MAC address 00:a0:98:00:00:0a is already used by nic.0.mac at \
             guest.toml:3:7"],
    );
    refuses(
        "stdio_used_twice",
        &[(
            "guest.toml",
            "name = 'fw1'\n[[serial]]\nbackend = 'stdio'\n[[serial]]\nbackend = 'none'\n[[serial]]\nbackend = \
         'stdio'\n[[serial]]\nbackend = 'none'\n",
        )],
        &["guest.toml:7:11: serial.2.backend: backend stdio is already used by serial.0.backend at \
             guest.toml:3:11"],
    );
    refuses(
        "kernel_and_firmware",
        &[("guest.toml", "name = 'fw1'\n[boot]\nfirmware = 'disk.img'\nkernel = 'disk.img'\n")],
        &["guest.toml:3:1: boot.firmware: cannot be given together with boot.kernel; allowed: one of \
             kernel, firmware"],
    );
    refuses(
        "initrd_without_a_kernel",
        &[("guest.toml", "name = 'fw1'\n[boot]\ninitrd = 'disk.img'\nargs = 'x'\n")],
        &[
            "guest.toml:3:1: boot.initrd: has no effect without boot.kernel",
            "guest.toml:4:1: boot.args: has no effect without boot.kernel",
        ],
    );
    refuses(
        "tcp_without_an_address",
        &[("guest.toml", "name = 'fw1'\n[[serial]]\nbackend = 'tcp'\n")],
        &["guest.toml:3:11: serial.0.address: required with backend = \"tcp\"; allowed: \"PORT\" or \
             \"HOST:PORT\", port 1 to 65535"],
    );
    refuses(
        "key_without_effect",
        &[("guest.toml", "name = 'fw1'\n[[nic]]\nbackend = 'tap'\ninterface = 'tap0'\nforward = ['tcp:8022:22']\n")],
        &["guest.toml:5:1: nic.0.forward: has no effect with backend = \"tap\"; allowed: with backend = \
             \"nat\""],
    );
    refuses(
        "too_many_elements",
        &[("guest.toml", "name = 'fw1'\n[[floppy]]\n[[floppy]]\n[[floppy]]\n[[floppy]]\n")],
        &[
            "guest.toml:4:3: floppy.2: one too many; allowed: at most 2",
            "guest.toml:5:3: floppy.3: one too many; allowed: at most 2",
        ],
    );
}

#[test]
fn everything_is_said_at_once() {
    refuses(
        "many_faults_in_one_file",
        &[(
            "guest.toml",
            "nmae = 'fw1'\ncpus = 'two'\nmemory = 1G\n[boot]\norder = ['cdrom']\n[[disk]]\nmodel = \
         'nvem'\n[[nic]]\nmodel = 'e100'\nmac = 'x'\n[screeen]\n",
        )],
        &[
            "guest.toml:1:1: name: required key is missing; allowed: 1 to 229 letters, digits, \"-\", \"_\" \
             and \".\"",
            "guest.toml:1:1: nmae: unknown key \"nmae\"; allowed: {top}; did you mean \"name\"?",
            "guest.toml:2:8: cpus: expected an integer, found the string \"two\"; allowed: 1 to 32",
            "guest.toml:3:10: memory: text without quotes: 1G; did you mean \"1G\"?",
            "guest.toml:5:10: boot.order: unknown word \"cdrom\"; allowed: floppy, cd, disk, net; did you \
             mean \"cd\"?",
            "guest.toml:6:3: disk.0.path: required key is missing; allowed: the path of a file or disk that \
             can be read",
            "guest.toml:7:9: disk.0.model: unknown model \"nvem\"; allowed: ahci, ide, nvme; did you mean \
             \"nvme\"?",
            "guest.toml:9:9: nic.0.model: unknown model \"e100\"; allowed: dec21140, e1000, rtl8139, \
             virtio-net; did you mean \"e1000\"?",
            "guest.toml:10:7: nic.0.mac: \"x\" is not a MAC address; allowed: six bytes as \
             \"00:a0:98:12:34:56\", not multicast",
            "guest.toml:11:2: screeen: unknown section \"screeen\"; allowed: {top}; did you mean [screen]?",
        ],
    );
}
