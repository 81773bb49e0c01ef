;; Describes its configuration in 64 KiB and one byte
(memory (export "memory") 4)
(data (i32.const 1024) "hostile0.1.0")
(data (i32.const 2048) "\00\04\00\00" "\07\00\00\00" "\07\04\00\00" "\05\00\00\00" "\00\04\00\00" "\00\00\00\00"
    "\00\00\01\00" "\01\00\01\00")
(func (export "describe") (type $describe) (i32.const 2048))
