! Makes a Fortran subroutine a simulator that stays up: call enkg_serve(simulate)
!
! Copy this file beside your program and compile it first. Fortran 2008, POSIX, no libraries.
!
!     program worker
!       use enkg_worker
!       implicit none
!       call enkg_serve(simulate)
!     contains
!       subroutine simulate(x, y, status)
!         real(enkg_real), intent(in)  :: x(:)   ! numbers of one member
!         real(enkg_real), intent(out) :: y(:)   ! its answer
!         integer, intent(out) :: status         ! not 0: the member failed, its answer becomes NaN
!         ...
!       end subroutine
!     end program
!
! Fields: x may be handed on to a dummy argument of the shape it has, such as u(nx, ny). Write
! order = "F" for input and output in simulator.toml, so that nx is the first number of its shape.
! Single precision: set enkg_real to c_float below, and dtype = "float32" in simulator.toml.
!
! MPI: every rank calls enkg_serve_mpi(simulate, rank, ranks, share), where share is
!     subroutine share(bytes, n)
!       integer(c_int8_t), intent(inout) :: bytes(*)
!       integer, intent(in) :: n
!       call MPI_Bcast(bytes, n, MPI_BYTE, 0, MPI_COMM_WORLD, ierror)
!     end subroutine
! Every rank then gets the same x and must call its simulate; y and status of rank 0 count. A rank
! that gives up while others wait for it must call MPI_Abort: enkg starts a new program.

module enkg_worker
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: error_unit
  use, intrinsic :: ieee_arithmetic, only: ieee_value, ieee_quiet_nan
  implicit none
  private
  public :: enkg_serve, enkg_serve_mpi, enkg_real, enkg_simulate, enkg_share

  integer, parameter :: enkg_real = c_double

  abstract interface
    subroutine enkg_simulate(x, y, status)
      import :: enkg_real
      real(enkg_real), intent(in) :: x(:)
      real(enkg_real), intent(out) :: y(:)
      integer, intent(out) :: status
    end subroutine
    subroutine enkg_share(bytes, n)
      import :: c_int8_t
      integer(c_int8_t), intent(inout) :: bytes(*)
      integer, intent(in) :: n
    end subroutine
  end interface

  integer, parameter :: hello = 1, ready = 2, eval = 3, result = 4, error = 5, bye = 6
  integer, parameter :: i8 = c_int64_t
  integer(i8), parameter :: width = storage_size(1.0_enkg_real) / 8

  type, bind(C) :: frame ! 64 bytes, little-endian
    character(c_char) :: magic(4)
    integer(c_int32_t) :: kind
    integer(c_int64_t) :: seq
    integer(c_int32_t) :: dtype, status
    integer(c_int64_t) :: batch, n, nbytes, member0, reserved
  end type

  ! Fortran's own stream input fails on short reads from pipes, hence C's.
  interface
    type(c_ptr) function c_fopen(path, mode) bind(C, name="fopen")
      import :: c_ptr, c_char
      character(kind=c_char), intent(in) :: path(*), mode(*)
    end function
    integer(c_int) function c_fileno(file) bind(C, name="fileno")
      import :: c_ptr, c_int
      type(c_ptr), value :: file
    end function
    integer(c_size_t) function c_read(fd, buffer, n) bind(C, name="read")
      import :: c_ptr, c_int, c_size_t
      integer(c_int), value :: fd
      type(c_ptr), value :: buffer
      integer(c_size_t), value :: n
    end function
    integer(c_size_t) function c_write(fd, buffer, n) bind(C, name="write")
      import :: c_ptr, c_int, c_size_t
      integer(c_int), value :: fd
      type(c_ptr), value :: buffer
      integer(c_size_t), value :: n
    end function
    type(c_ptr) function c_mmap(at, n, protection, flags, fd, offset) bind(C, name="mmap")
      import :: c_ptr, c_int, c_size_t, c_int64_t
      type(c_ptr), value :: at
      integer(c_size_t), value :: n
      integer(c_int), value :: protection, flags, fd
      integer(c_int64_t), value :: offset
    end function
    subroutine c_exit(status) bind(C, name="exit")
      import :: c_int
      integer(c_int), value :: status
    end subroutine
  end interface

  type :: channel
    integer(c_int) :: rx = -1, tx = -1
    integer(i8) :: n_in = 0, n_out = 0, size = 0
    integer :: ranks = 0
    logical :: is_shared = .false.
    integer(c_int8_t), pointer :: shared(:) => null()
    integer(c_int8_t), pointer :: input(:) => null(), output(:) => null()
  end type

contains

  subroutine enkg_serve(simulate)
    procedure(enkg_simulate) :: simulate
    call serve(simulate, 0, 0)
  end subroutine

  subroutine enkg_serve_mpi(simulate, rank, ranks, share)
    procedure(enkg_simulate) :: simulate
    integer, intent(in) :: rank, ranks
    procedure(enkg_share) :: share
    call serve(simulate, rank, ranks, share)
  end subroutine

  subroutine serve(simulate, rank, ranks, share)
    procedure(enkg_simulate) :: simulate
    integer, intent(in) :: rank, ranks
    procedure(enkg_share), optional :: share
    type(channel) :: c
    type(frame), target :: h
    integer(i8), target :: task(4) ! going, members, n_in, n_out
    real(enkg_real), pointer :: x(:, :), y(:, :)
    type(c_ptr) :: in, out
    integer(i8) :: j
    integer :: status

    if (rank == 0) call open_channel(c, ranks)
    do
      if (rank == 0) then
        task = 0
        if (next(c, h)) task = [1_i8, h%batch, c%n_in, c%n_out]
      end if
      if (present(share)) call share_all(share, c_loc(task), 32_i8)
      if (task(1) == 0) exit
      if (rank == 0) then
        call take(c, h, in, out)
      else
        call reserve(c%input, width * task(2) * task(3))
        call reserve(c%output, width * task(2) * task(4))
        in = c_loc(c%input)
        out = c_loc(c%output)
      end if
      if (present(share)) call share_all(share, in, width * task(2) * task(3))
      call c_f_pointer(in, x, [task(3), task(2)])
      call c_f_pointer(out, y, [task(4), task(2)])
      y = ieee_value(1.0_enkg_real, ieee_quiet_nan)
      do j = 1, task(2)
        call simulate(x(:, j), y(:, j), status)
        if (status /= 0) y(:, j) = ieee_value(1.0_enkg_real, ieee_quiet_nan)
      end do
      if (rank == 0) call answer(c, h)
    end do
    if (associated(c%input)) deallocate (c%input)
    if (associated(c%output)) deallocate (c%output)
  end subroutine

  ! The next call; false at the end.
  logical function next(c, h)
    type(channel), intent(inout) :: c
    type(frame), target, intent(inout) :: h
    do
      next = .false.
      if (.not. read_all(c%rx, c_loc(h), 64_i8)) return
      if (any(h%magic /= ["E", "K", "G", "1"])) call fail("not a frame")
      if (h%kind == bye) return
      next = .true.
      if (h%kind == eval) return
      if (h%kind /= hello .or. h%nbytes /= 0) call fail("unexpected frame")
      call greet(c, h)
    end do
  end function

  subroutine greet(c, h)
    type(channel), intent(inout) :: c
    type(frame), target, intent(inout) :: h
    character(c_char), target :: text(80)
    character(80) :: line
    integer :: k
    if (h%dtype /= merge(1, 2, width == 4)) then
      line = "this program computes in float64: say so in simulator.toml"
      if (width == 4) line = "this program computes in float32: say so in simulator.toml"
      text = [(line(k:k), k = 1, 80)]
      h%kind = error
      h%nbytes = len_trim(line)
      call write_all(c%tx, c_loc(h), 64_i8)
      call write_all(c%tx, c_loc(text), h%nbytes)
      return
    end if
    c%n_in = h%batch
    c%n_out = h%n
    if (h%reserved > 0 .and. .not. c%is_shared) call map(c, h%reserved)
    h%kind = ready
    h%status = c%ranks
    h%reserved = merge(1, 0, c%is_shared)
    call write_all(c%tx, c_loc(h), 64_i8)
  end subroutine

  ! Shared memory; where there is none, the numbers go through the pipe.
  subroutine map(c, size)
    type(channel), intent(inout) :: c
    integer(i8), intent(in) :: size
    integer(c_int), parameter :: read_write = 3, map_shared = 1
    type(c_ptr) :: file, at
    file = open_file("ENKG_SHM", "r+b")
    if (.not. c_associated(file)) return
    at = c_mmap(c_null_ptr, int(size, c_size_t), read_write, map_shared, c_fileno(file), 0_i8)
    if (transfer(at, 0_c_intptr_t) == -1) return
    call c_f_pointer(at, c%shared, [size])
    c%size = size
    c%is_shared = .true.
  end subroutine

  ! Where the input of a call lies, once it has been read, and where its output goes.
  subroutine take(c, h, in, out)
    type(channel), intent(inout) :: c
    type(frame), intent(in) :: h
    type(c_ptr), intent(out) :: in, out
    integer(i8) :: size_in, size_out, offset
    size_in = width * h%batch * c%n_in
    size_out = width * h%batch * c%n_out
    offset = (size_in + 4095) / 4096 * 4096
    if (h%n /= c%n_in) call fail("a call of another shape than agreed")
    if (h%nbytes /= merge(0_i8, size_in, c%is_shared)) call fail("a call of another size")
    if (c%is_shared) then
      if (offset + size_out > c%size) call fail("a call of another size than agreed")
      in = c_loc(c%shared)
      out = c_loc(c%shared(offset + 1))
    else
      call reserve(c%input, size_in)
      call reserve(c%output, 64 + size_out)
      in = c_loc(c%input)
      out = c_loc(c%output(65)) ! behind the header: both leave in one piece
      if (.not. read_all(c%rx, in, size_in)) call fail("the input ends too early")
    end if
  end subroutine

  subroutine answer(c, h)
    type(channel), intent(inout) :: c
    type(frame), target, intent(inout) :: h
    h%kind = result
    h%n = c%n_out
    h%nbytes = merge(0_i8, width * h%batch * c%n_out, c%is_shared)
    if (c%is_shared) then
      call write_all(c%tx, c_loc(h), 64_i8)
    else
      c%output(1:64) = transfer(h, c%output, 64)
      call write_all(c%tx, c_loc(c%output), 64 + h%nbytes)
    end if
  end subroutine

  subroutine open_channel(c, ranks)
    type(channel), intent(inout) :: c
    integer, intent(in) :: ranks
    type(c_ptr) :: rx, tx
    rx = open_file("ENKG_IN", "rb") ! in this order: named pipes wait for each other
    if (.not. c_associated(rx)) call fail("cannot open ENKG_IN: this program is started by enkg")
    tx = open_file("ENKG_OUT", "wb")
    if (.not. c_associated(tx)) call fail("cannot open ENKG_OUT: this program is started by enkg")
    c%rx = c_fileno(rx)
    c%tx = c_fileno(tx)
    c%ranks = ranks
  end subroutine

  ! The file that an environment variable names, or a null pointer.
  type(c_ptr) function open_file(name, mode)
    character(*), intent(in) :: name, mode
    character(4096) :: path
    integer :: length, status
    open_file = c_null_ptr
    call get_environment_variable(name, path, length, status)
    if (status /= 0 .or. length == 0) return
    open_file = c_fopen(path(:length)//c_null_char, mode//c_null_char)
  end function

  ! An int8 buffer of at least `size` bytes; what it held is lost.
  subroutine reserve(buffer, size)
    integer(c_int8_t), pointer, intent(inout) :: buffer(:)
    integer(i8), intent(in) :: size
    if (associated(buffer)) then
      if (ubound(buffer, 1, i8) >= size) return
      deallocate (buffer)
    end if
    allocate (buffer(max(size, 1_i8)))
  end subroutine

  logical function read_all(fd, at, size)
    integer(c_int), intent(in) :: fd
    type(c_ptr), intent(in) :: at
    integer(i8), intent(in) :: size
    integer(c_int8_t), pointer :: bytes(:)
    integer(i8) :: done, got
    integer :: faults
    call c_f_pointer(at, bytes, [size])
    done = 0
    faults = 0
    do while (done < size .and. faults < 100) ! a signal may interrupt
      got = c_read(fd, c_loc(bytes(done + 1)), int(size - done, c_size_t))
      if (got == 0) exit
      done = done + max(got, 0_i8)
      if (got < 0) faults = faults + 1
    end do
    read_all = done == size
  end function

  subroutine write_all(fd, at, size)
    integer(c_int), intent(in) :: fd
    type(c_ptr), intent(in) :: at
    integer(i8), intent(in) :: size
    integer(c_int8_t), pointer :: bytes(:)
    integer(i8) :: done, put
    integer :: faults
    call c_f_pointer(at, bytes, [size])
    done = 0
    faults = 0
    do while (done < size)
      put = c_write(fd, c_loc(bytes(done + 1)), int(size - done, c_size_t))
      done = done + max(put, 0_i8)
      if (put < 0) faults = faults + 1
      if (faults == 100) call fail("enkg is gone")
    end do
  end subroutine

  subroutine share_all(share, at, size)
    procedure(enkg_share) :: share
    type(c_ptr), intent(in) :: at
    integer(i8), intent(in) :: size
    integer(i8), parameter :: piece = 2_i8**30 ! MPI counts in default integers
    integer(c_int8_t), pointer :: bytes(:)
    integer(i8) :: first, last
    call c_f_pointer(at, bytes, [size])
    do first = 1, size, piece
      last = min(first + piece - 1, size)
      call share(bytes(first:last), int(last - first + 1))
    end do
  end subroutine

  subroutine fail(text)
    character(*), intent(in) :: text
    write (error_unit, "(2a)") "enkg_worker: ", text
    flush (error_unit)
    call c_exit(1)
  end subroutine

end module
