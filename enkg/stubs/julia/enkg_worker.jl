# Makes a Julia function a simulator that stays up: serve(f)
#
# Copy this file beside your program; only the standard library is used. This file has not been
# run by enkg's tests: check it once with the example before you rely on it.
#
#     include("enkg_worker.jl")
#     serve(x -> 2 .* x)        # x: Vector of one member's numbers, to a Vector of its answer
#
# In simulator.toml, order = "F" for input and output makes reshape(x, nx, ny) have the shape
# [nx, ny]. Printing is allowed. An exception fails the call with its message.

module EnkgWorker

using Mmap

export serve

const HELLO, READY, EVAL, RESULT, ERROR, BYE = UInt32.(1:6)

mutable struct Frame
    kind::UInt32
    seq::UInt64
    dtype::UInt32
    status::Int32
    batch::UInt64
    n::UInt64
    nbytes::UInt64
    member0::UInt64
    reserved::UInt64
end

"The next frame, or nothing at the end of the stream."
function receive(rx)
    header = read(rx, 64)
    length(header) < 64 && return nothing
    header[1:4] == b"EKG1" || error("not a frame")
    io = IOBuffer(header[5:64])
    get(T) = ltoh(read(io, T))
    Frame(get(UInt32), get(UInt64), get(UInt32), get(Int32), (get(UInt64) for _ in 1:5)...)
end

function send(tx, h::Frame, payload)
    h.nbytes = sizeof(payload)
    io = IOBuffer()
    write(io, b"EKG1")
    for name in fieldnames(Frame)
        write(io, htol(getfield(h, name)))
    end
    write(tx, take!(io))
    write(tx, payload)
    flush(tx)
end

"The answers of all members as columns, from their inputs as columns."
function evaluate(f, x::Matrix{T}, n_out) where {T}
    y = Matrix{T}(undef, n_out, size(x, 2))
    for j in axes(x, 2)
        row = vec(collect(f(x[:, j])))
        length(row) == n_out || error("the function returned $(length(row)) numbers, not $n_out")
        y[:, j] = row
    end
    y
end

function serve(f)
    rx = open(ENV["ENKG_IN"], "r")   # in this order: named pipes wait for each other
    tx = open(ENV["ENKG_OUT"], "w")
    T, n_out, memory = Float64, 0, nothing
    while true
        h = receive(rx)
        (h === nothing || h.kind == BYE) && return
        if h.kind == HELLO
            T = h.dtype == 1 ? Float32 : Float64
            n_out = Int(h.n)
            if h.reserved > 0 && haskey(ENV, "ENKG_SHM")
                try
                    file = open(ENV["ENKG_SHM"], "r+")
                    memory = Mmap.mmap(file, Vector{UInt8}, Int(h.reserved); grow = false)
                catch
                    memory = nothing   # the numbers go through the pipe
                end
            end
            h.kind, h.reserved = READY, memory === nothing ? 0 : 1
            send(tx, h, UInt8[])
            continue
        end
        h.kind == EVAL || error("unexpected frame")
        n, batch = Int(h.n), Int(h.batch)
        size_in = n * batch * sizeof(T)
        x = Matrix{T}(undef, n, batch)
        if memory === nothing
            h.nbytes == size_in || error("a call of another size than agreed")
            read!(rx, x)
        else
            copyto!(x, reinterpret(T, view(memory, 1:size_in)))
        end
        try
            y = evaluate(f, x, n_out)
            h.kind, h.n = RESULT, n_out
            if memory === nothing
                send(tx, h, vec(y))
            else
                offset = cld(size_in, 4096) * 4096
                place = view(memory, offset+1:offset+sizeof(y))
                copyto!(place, reinterpret(UInt8, vec(y)))
                send(tx, h, UInt8[])
            end
        catch e
            h.kind, h.status = ERROR, 1
            send(tx, h, Vector{UInt8}(codeunits(sprint(showerror, e))))
        end
    end
end

end # module

using .EnkgWorker: serve
