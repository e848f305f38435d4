! A body cools in a room of 20 degrees: 2 numbers in, 12 temperatures out.
!
!     ./NAME              stays up and takes members from enkg, one after another
!     ./NAME IN OUT       computes one member: numbers in text files
!
! Put your own computation into simulate, and the shapes into simulator.toml.
program main
  use enkg_worker
  implicit none

  if (command_argument_count() == 2) then
    call one_member()
  else
    call enkg_serve(simulate)
  end if

contains

  ! status: 0, or anything else for a member that cannot be computed
  subroutine simulate(x, y, status)
    real(enkg_real), intent(in) :: x(:)
    real(enkg_real), intent(out) :: y(:)
    integer, intent(out) :: status
    integer :: i
    status = merge(0, 1, size(x) == 2 .and. size(y) == 12)
    if (status /= 0) return
    if (.not. x(2) > 0) status = 1 ! a body that warms up by itself
    if (status /= 0) return
    y = [(20 + x(1) * exp(-x(2) * 5 * i), i = 0, 11)]
  end subroutine

  subroutine one_member()
    real(enkg_real) :: x(2), y(12)
    character(len=1000) :: from, to
    integer :: unit, status
    call get_command_argument(1, from)
    call get_command_argument(2, to)
    open (newunit=unit, file=trim(from), status="old", action="read")
    read (unit, *) x
    close (unit)
    call simulate(x, y, status)
    if (status /= 0) error stop "the rate must be positive"
    open (newunit=unit, file=trim(to), status="replace", action="write")
    write (unit, "(es25.17e3)") y
    close (unit)
  end subroutine

end program
