//! What is said of files that are not TOML, or that do not fit together: each fault once, with its place and remedy.

use crate::common::refuses;

#[test]
fn text_that_is_not_toml() {
    refuses(
        "empty",
        &[("guest.toml", "")],
        &["guest.toml:1:1: name: required key is missing; allowed: 1 to 229 letters, digits, \"-\", \"_\" \
             and \".\""],
    );
    refuses(
        "only_a_comment",
        &[("guest.toml", "# nothing\n")],
        &["guest.toml:1:1: name: required key is missing; allowed: 1 to 229 letters, digits, \"-\", \"_\" \
             and \".\""],
    );
    refuses("value_missing", &[("guest.toml", "name =\ncpus = 2\n")], &["guest.toml:1:7: name: the value is missing"]);
    refuses(
        "equals_missing",
        &[("guest.toml", "name 'fw1'\n")],
        &["guest.toml:1:6: name: key with no value; allowed: ="],
    );
    refuses(
        "word_without_quotes",
        &[("guest.toml", "name = fw1\n")],
        &["guest.toml:1:8: name: text without quotes: fw1; did you mean \"fw1\"?"],
    );
    refuses(
        "size_without_quotes",
        &[("guest.toml", "name = 'fw1'\nmemory = 512M\n")],
        &["guest.toml:2:10: memory: text without quotes: 512M; did you mean \"512M\"?"],
    );
    refuses(
        "yes_for_true",
        &[("guest.toml", "name = 'fw1'\n[[disk]]\npath = 'disk.img'\nreadonly = yes\n")],
        &["guest.toml:4:12: disk.0.readonly: text without quotes: yes; did you mean true?"],
    );
    refuses(
        "capital_true",
        &[("guest.toml", "name = 'fw1'\n[autostart]\nenabled = True\n")],
        &["guest.toml:3:11: autostart.enabled: text without quotes: True; did you mean true?"],
    );
    refuses(
        "string_not_closed",
        &[("guest.toml", "name = 'fw1\ncpus = 99\n")],
        &[
            "guest.toml:1:12: name: invalid literal string; allowed: '",
            "guest.toml:2:8: cpus: 99 is out of range; allowed: 1 to 32",
        ],
    );
    refuses(
        "bad_escape",
        &[("guest.toml", "name = \"fw1\"\n[boot]\nkernel = \"disk.img\"\nargs = \"a\\qb\"\n")],
        &["guest.toml:4:11: boot.args: missing escaped value; allowed: b, e, f, n, r, \\, \", x, u, U"],
    );
    refuses(
        "header_not_closed",
        &[("guest.toml", "name = 'fw1'\n[boot\nargs = 'x'\n")],
        &[
            "guest.toml:2:6: boot: unclosed table; allowed: ]",
            "guest.toml:3:1: boot.args: has no effect without boot.kernel",
        ],
    );
    refuses(
        "array_header_not_closed",
        &[("guest.toml", "name = 'fw1'\n[[disk]\npath = 'disk.img'\n")],
        &["guest.toml:2:8: disk: unclosed array table; allowed: ]"],
    );
    refuses(
        "list_not_closed",
        &[("guest.toml", "name = 'fw1'\n[boot]\norder = ['cd',\n[screen]\n")],
        &["guest.toml:4:1: boot.order: a list within a list; allowed: a list of plain values"],
    );
    refuses(
        "inline_table_not_closed",
        &[("guest.toml", "name = 'fw1'\nacpi = { enabled = true\n")],
        &["guest.toml:2:24: acpi: unclosed inline table; allowed: }"],
    );
    refuses(
        "colon_for_equals",
        &[("guest.toml", "name = 'fw1'\ncpus: 2\n")],
        &["guest.toml:2:1: a name cannot have \":\" in it; allowed: letters, digits, \"-\" and \"_\""],
    );
    refuses(
        "json",
        &[("guest.toml", "{ 'name': 'fw1' }\n")],
        &["guest.toml:1:1: invalid key-value pair; allowed: key"],
    );
    refuses(
        "shell_style_export",
        &[("guest.toml", "name = 'fw1'\nexport cpus=2\n")],
        &["guest.toml:2:8: export: key with no value; allowed: ="],
    );
    refuses(
        "garbage_line",
        &[("guest.toml", "name = 'fw1'\n<<<<<<< HEAD\ncpus = 99\n")],
        &[
            "guest.toml:2:1: invalid unquoted key; allowed: letters, numbers, -, _",
            "guest.toml:3:8: cpus: 99 is out of range; allowed: 1 to 32",
        ],
    );
    refuses(
        "garbage_behind_a_value",
        &[("guest.toml", "name = 'fw1'\ncpus = 2 memory = '1G'\n")],
        &["guest.toml:2:8: cpus: text without quotes: 2 memory"],
    );
    refuses(
        "control_character",
        &[("guest.toml", "name = \"fw1\"\ncpus\u{1} = 2\n")],
        &["guest.toml:2:1: a name cannot have \"\\u{1}\" in it; allowed: letters, digits, \"-\" and \"_\""],
    );
    refuses(
        "huge_number",
        &[("guest.toml", "name = 'fw1'\nseed = 999999999999999999999999999999999999999999\n")],
        &["guest.toml:2:8: seed: the number is too large"],
    );
    refuses(
        "bad_date",
        &[("guest.toml", "name = 'fw1'\nseed = 1979-13-45\n")],
        &["guest.toml:2:8: seed: expected an integer, found the date 1979-13-45; allowed: 0 or more"],
    );
    refuses(
        "list_in_list",
        &[("guest.toml", "name = 'fw1'\n[boot]\norder = [['cd']]\n")],
        &["guest.toml:3:10: boot.order: a list within a list; allowed: a list of plain values"],
    );
    refuses(
        "values_and_tables_in_a_list",
        &[("guest.toml", "name = 'fw1'\ndisk = ['disk.img', { path = 'disk.img' }]\n")],
        &["guest.toml:2:8: disk: a list of both values and tables; allowed: all values or all tables"],
    );
    refuses(
        "too_deep_arrays",
        &[("guest.toml", "name = 'fw1'\nseed = [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]\n")],
        &["guest.toml:2:9: seed: a list within a list; allowed: a list of plain values"],
    );
    refuses(
        "too_deep_key",
        &[("guest.toml", "name = 'fw1'\na.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a = 1\n")],
        &["guest.toml:2:1: a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a: the key has too many names; allowed: up to 16 \
             names joined by dots"],
    );
    refuses(
        "windows_lines",
        &[("guest.toml", "\u{feff}name = \"fw1\"\r\n\r\ncpus = 99\r\n")],
        &["guest.toml:3:8: cpus: 99 is out of range; allowed: 1 to 32"],
    );
}

#[test]
fn keys_and_tables_given_twice() {
    refuses(
        "key_twice",
        &[("guest.toml", "name = 'fw1'\ncpus = 1\nname = 'fw2'\n")],
        &["guest.toml:3:1: name: given twice; first at guest.toml:1:1"],
    );
    refuses(
        "table_twice",
        &[("guest.toml", "name = 'fw1'\n[boot]\nargs = 'x'\n[boot]\norder = ['cdrom']\n")],
        &[
            "guest.toml:3:1: boot.args: has no effect without boot.kernel",
            "guest.toml:4:2: boot: given twice; first at guest.toml:2:2",
            "guest.toml:5:10: boot.order: unknown word \"cdrom\"; allowed: floppy, cd, disk, net; did you \
             mean \"cd\"?",
        ],
    );
    refuses(
        "table_and_array",
        &[("guest.toml", "name = 'fw1'\n[[disk]]\npath = 'disk.img'\n[disk]\n")],
        &["guest.toml:4:2: disk: given twice; first at guest.toml:2:3"],
    );
    refuses(
        "dotted_and_table",
        &[("guest.toml", "name = 'fw1'\nboot.order = ['cd']\n[boot]\n")],
        &["guest.toml:3:2: boot: given twice; first at guest.toml:2:1"],
    );
}

#[test]
fn includes() {
    refuses(
        "include_missing",
        &[("guest.toml", "include = 'bsae.toml'\nname = 'fw1'\n"), ("base.toml", "")],
        &["guest.toml:1:11: include: cannot read \"bsae.toml\": No such file or directory"],
    );
    refuses(
        "include_cycle",
        &[
            ("guest.toml", "name = 'fw1'\ninclude = 'a.toml'\n"),
            ("a.toml", "include = ['b.toml']\n"),
            ("b.toml", "cpus = 99\ninclude = 'guest.toml'\n"),
        ],
        &[
            "b.toml:1:8: cpus: 99 is out of range; allowed: 1 to 32",
            "b.toml:2:11: include: \"guest.toml\" includes itself",
        ],
    );
    refuses(
        "include_itself",
        &[("guest.toml", "include = 'guest.toml'\nname = 'fw1'\n")],
        &["guest.toml:1:11: include: \"guest.toml\" includes itself"],
    );
    refuses(
        "include_a_directory",
        &[("guest.toml", "include = '.'\nname = 'fw1'\n")],
        &["guest.toml:1:11: include: \".\" is a directory; allowed: a TOML file"],
    );
    refuses(
        "include_in_a_section",
        &[("guest.toml", "name = 'fw1'\n[boot]\ninclude = 'a.toml'\n")],
        &["guest.toml:3:1: boot.include: \"include\" belongs at the top, before the first [section]; \
             allowed: order, once, menu, serial, kernel, initrd, args, firmware, vars"],
    );
    refuses(
        "include_of_the_wrong_type",
        &[("guest.toml", "include = 5\nname = 'fw1'\n")],
        &["guest.toml:1:11: include: expected a path, found the integer 5; allowed: a path, or a list of \
             paths"],
    );
    refuses(
        "fault_in_an_included_file",
        &[
            ("guest.toml", "include = 'base.toml'\nname = 'fw1'\ncpsu = 1\n"),
            ("base.toml", "memory = '1Q'\n[[disk]]\npath = 'none'\n"),
        ],
        &[
            "base.toml:1:10: memory: \"1Q\" has an unknown unit \"Q\"; allowed: 1M to 1T, as a number with B, \
             K, M, G or T",
            "base.toml:3:8: disk.0.path: cannot read \"none\": No such file or directory; allowed: the path \
             of a file or disk that can be read",
            "guest.toml:3:1: cpsu: unknown key \"cpsu\"; allowed: {top}; did you mean \"cpus\"?",
        ],
    );
}

#[test]
fn references() {
    refuses(
        "reference_to_itself",
        &[("guest.toml", "name = 'fw1'\n[boot]\nkernel = 'disk.img'\nargs = '%(boot.args)'\n")],
        &["guest.toml:4:8: boot.args: refers to itself: boot.args -> boot.args"],
    );
    refuses(
        "cycle_of_references",
        &[("guest.toml", "name = '%(vars.a)'\n[vars]\na = '%(vars.b)'\nb = '%(vars.a)'\n")],
        &[
            "guest.toml:1:8: name: refers to itself: name -> vars.a -> vars.b -> vars.a",
            "guest.toml:3:5: vars.a: refers to itself: vars.a -> vars.b -> vars.a",
            "guest.toml:4:5: vars.b: refers to itself: vars.b -> vars.a -> vars.b",
        ],
    );
    refuses(
        "unknown_reference",
        &[("guest.toml", "name = 'fw1'\n[vars]\ndirectory = '.'\n[boot]\nkernel = '%(vars.direktory)/disk.img'\n")],
        &["guest.toml:5:10: boot.kernel: \"%(vars.direktory)\" refers to a key that is not set; did you \
             mean \"%(vars.directory)\"?"],
    );
    refuses(
        "reference_to_a_section",
        &[("guest.toml", "name = 'fw1'\n[boot]\n[vars]\nx = '%(boot)'\n")],
        &["guest.toml:4:5: vars.x: \"%(boot)\" is a section; allowed: keys with a single value"],
    );
    refuses(
        "reference_not_closed",
        &[("guest.toml", "name = 'fw1'\n[vars]\nx = '%(name'\n")],
        &["guest.toml:3:5: vars.x: \"%(\" without a \")\"; allowed: %(name), or %% for a percent sign"],
    );
    refuses(
        "expanded_value_out_of_range",
        &[("guest.toml", "name = 'fw1'\ncpus = '%(vars.n)'\n[vars]\nn = 64\n")],
        &["guest.toml:2:8: cpus: 64 is out of range; allowed: 1 to 32"],
    );
    refuses(
        "section_among_variables",
        &[("guest.toml", "name = 'fw1'\n[vars.a]\nb = 1\n")],
        &["guest.toml:2:7: vars.a: expected a value, found a section; allowed: a single value"],
    );
}

#[test]
fn bytes_that_are_not_utf8() {
    refuses("latin_1", &[("guest.toml", b"name = 'fw1'\n# caf\xe9\n")], &["guest.toml:2:6: not UTF-8 text: byte 0xe9"]);
    let mut text = "name = 'fw1' # 日本".as_bytes().to_vec();
    text.push(0xff);
    refuses("behind_wide_characters", &[("guest.toml", text)], &["guest.toml:1:18: not UTF-8 text: byte 0xff"]);
    let utf16 = b"\xff\xfen\0a\0m\0e\0".as_slice();
    refuses("utf_16", &[("guest.toml", utf16)], &["guest.toml:1:1: not UTF-8 text: byte 0xff"]);
    refuses(
        "included_file_not_utf8",
        &[("guest.toml", b"include = 'base.toml'\ncpus = 99\n".as_slice()), ("base.toml", b"\0\xff")],
        &["base.toml:1:2: not UTF-8 text: byte 0xff", "guest.toml:2:8: cpus: 99 is out of range; allowed: 1 to 32"],
    );
}
