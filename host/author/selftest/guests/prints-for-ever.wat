;; Prints 400 KiB on its standard output
(func (export "refresh") (type $refresh) (local $i i32) (local $out i32)
    (local.set $out (call $stdout))
    (memory.fill (i32.const 65536) (i32.const 10) (i32.const 4096))
    (loop $again
        (call $print (local.get $out) (i32.const 65536) (i32.const 4096) (i32.const 8192))
        (call $must (i32.eqz (i32.load8_u (i32.const 8192))))
        (br_if $again (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 100))))
    (i32.const 4160))
