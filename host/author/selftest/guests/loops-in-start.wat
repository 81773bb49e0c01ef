;; Computes for ever in the start function of its module, before anybody calls it
(func $start (loop $for-ever (br $for-ever)))
(start $start)
