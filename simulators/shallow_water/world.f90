! The world of MPI ranks: the functions of world.c.

module world
  use, intrinsic :: iso_c_binding
  implicit none
  integer(c_int) :: rank = 0, ranks = 1

  interface
    subroutine world_start(rank, ranks) bind(C)
      import :: c_int
      integer(c_int), intent(out) :: rank, ranks
    end subroutine
    subroutine world_swap(send, to, receive, from, count) bind(C)
      import :: c_int, c_double
      real(c_double), intent(in) :: send(*)
      real(c_double), intent(inout) :: receive(*)
      integer(c_int), value :: to, from, count
    end subroutine
    subroutine world_share(values, bytes) bind(C)
      import :: c_int
      type(*), intent(inout) :: values(*)
      integer(c_int), value :: bytes
    end subroutine
    subroutine world_sum(values, count) bind(C)
      import :: c_int, c_double
      real(c_double), intent(inout) :: values(*)
      integer(c_int), value :: count
    end subroutine
    integer(c_int) function world_largest(value) bind(C)
      import :: c_int
      integer(c_int), value :: value
    end function
    subroutine world_end(code) bind(C)
      import :: c_int
      integer(c_int), value :: code
    end subroutine
    subroutine world_sleep(seconds) bind(C)
      import :: c_double
      real(c_double), value :: seconds
    end subroutine
    integer(c_int) function rename_file(old, new) bind(C, name="rename")
      import :: c_int, c_char
      character(c_char), intent(in) :: old(*), new(*)
    end function
  end interface

contains

  subroutine stop_all(code, reason)
    ! Ends every rank. All ranks call it together with the same code.
    integer, intent(in) :: code
    character(*), intent(in) :: reason
    if (rank == 0 .and. code /= 0) call complain(reason)
    call world_end(int(code, c_int))
  end subroutine

  subroutine complain(reason)
    use, intrinsic :: iso_fortran_env, only: error_unit
    character(*), intent(in) :: reason
    write (error_unit, '(2a)') 'swe2d: ', trim(reason)
    flush (error_unit)
  end subroutine

end module
