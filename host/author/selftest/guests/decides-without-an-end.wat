;; Reports twenty thousand and one decisions
(memory (export "memory") 40)
(global $top (mut i32) (i32.const 2000000))
(func (export "realloc") (param i32 i32 i32 i32) (result i32)
    (global.set $top (i32.add (global.get $top) (i32.const 4096)))
    (global.get $top))
(func (export "refresh") (type $refresh) (call $report (i32.const 65536) (i32.const 20001)))
