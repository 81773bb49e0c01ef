;; Waits for a clock of WASI for ten hours
(func (export "refresh") (type $refresh)
    (call $block (call $after (i64.const 36000000000000)))
    (i32.const 4160))
