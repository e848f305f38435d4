! swe2d: shallow water in a square basin, from a displacement of the surface to tide gauges.
! See swe2d --help for the files, and ocean.f90 for the equations.

! What serves enkg: module procedures, because one that is passed on from inside the program would
! need an executable stack.
module service
  use, intrinsic :: iso_c_binding
  use world
  use files
  use ocean
  implicit none
  type(settings) :: chosen
  real(c_double), allocatable :: places(:, :)

contains

  subroutine answer(x, y, status)
    ! One member of enkg: the surface at the start to the gauges, on all ranks.
    real(c_double), intent(in) :: x(:)
    real(c_double), intent(out) :: y(:)
    integer, intent(out) :: status
    real(c_double) :: field(chosen%n, chosen%n), series(chosen%minutes, size(places, 2))
    integer :: dry
    status = 2
    if (size(x) /= size(field) .or. size(y) /= size(series)) then
      if (rank == 0) call complain('simulator.toml has other shapes than the case and the gauges')
      return
    end if
    field = reshape(x, shape(field))
    call world_sleep(chosen%sleep)
    call simulate(chosen, places, field, series, dry)
    if (dry < 0) y = reshape(series, shape(y))
    status = merge(0, 3, dry < 0)
    if (rank == 0 .and. dry >= 0) call complain(too_dry(dry))
  end subroutine

  subroutine share(bytes, n)
    integer(c_int8_t), intent(inout) :: bytes(*)
    integer, intent(in) :: n
    call world_share(bytes, int(n, c_int))
  end subroutine

  function too_dry(minute) result(reason)
    integer, intent(in) :: minute
    character(80) :: reason
    write (reason, '(a,i0,a)') 'minute ', minute, ': the depth of the water is not positive, or NaN'
  end function

end module

program swe2d
  use, intrinsic :: iso_c_binding
  use enkg_worker, only: enkg_serve_mpi
  use world
  use files
  use ocean
  use service
  implicit none
  character(1024) :: argument
  character(1200) :: wrong

  call get_command_argument(1, argument)
  if (argument == '--help' .or. argument == '-h') then
    call help()
    stop
  end if
  call world_start(rank, ranks)
  call check(world_size())
  wrong = ''
  if (command_argument_count() /= merge(2, 1, argument == '--serve')) &
    wrong = 'expected [--serve] CASE; see swe2d --help'
  call check(wrong)
  if (argument == '--serve') then
    call get_command_argument(2, argument)
    call prepare(.true.)
    call enkg_serve_mpi(answer, int(rank), int(ranks), share)
  else
    call prepare(.false.)
    call run_case()
  end if
  call stop_all(0, '')

contains

  subroutine prepare(serving)
    ! Rank 0 reads the case and the gauges and tells the others.
    logical, intent(in) :: serving
    real(c_double) :: numbers(7)
    if (rank == 0) call read_case(trim(argument), serving, chosen, wrong)
    call check(wrong)
    if (rank == 0) call read_gauges(trim(chosen%gauges), chosen%side, places, wrong)
    call check(wrong)
    if (rank == 0) numbers = [real(c_double) :: chosen%n, chosen%minutes, size(places, 2), &
                              chosen%side, chosen%deep, chosen%shallow, chosen%sleep]
    call world_share(numbers, 8*size(numbers))
    chosen%n = nint(numbers(1))
    chosen%minutes = nint(numbers(2))
    chosen%side = numbers(4)
    chosen%deep = numbers(5)
    chosen%shallow = numbers(6)
    chosen%sleep = numbers(7)
    if (rank > 0) allocate (places(2, nint(numbers(3))))
    call world_share(places, 8*size(places))
    if (ranks > chosen%n) wrong = 'there are more ranks than rows'
    call check(wrong)
  end subroutine

  subroutine run_case()
    real(c_double), allocatable :: field(:, :), series(:, :)
    real(c_double) :: before
    integer :: dry
    allocate (field(chosen%n, chosen%n), series(chosen%minutes, size(places, 2)))
    if (rank == 0) call read_field(trim(chosen%input), field, wrong)
    call check(wrong)
    call world_share(field, 8*size(field))
    before = sum(field)/size(field)
    call world_sleep(chosen%sleep)
    call simulate(chosen, places, field, series, dry)
    if (dry >= 0) call stop_all(3, too_dry(dry))
    if (rank == 0) then
      call write_array(trim(chosen%output), series, wrong)
      if (wrong == '' .and. chosen%surface /= '') &
        call write_array(trim(chosen%surface), field, wrong)
      if (wrong == '') print '(i0,a,i0,a,i0,a,es12.5,a,es12.5,a,es12.5,a)', &
        chosen%n, ' x ', chosen%n, ' cells, ranks: ', ranks, '; mean surface', before, &
        ' m, at the end', sum(field)/size(field), ' m; highest', maxval(field), ' m'
    end if
    call check(wrong)
  end subroutine

  subroutine check(reason)
    ! Rank 0's objection ends all ranks.
    character(*), intent(in) :: reason
    if (world_largest(merge(0, 1, reason == '')) == 1) call stop_all(2, reason)
  end subroutine

  function world_size() result(reason)
    ! A launcher of another MPI starts worlds of one that know nothing of each other.
    character(200) :: reason
    character(16) :: expected
    integer :: wanted, status
    reason = ''
    call get_environment_variable('ENKG_RANKS', expected)
    if (expected == '') return
    read (expected, *, iostat=status) wanted
    if (status /= 0) wanted = -1
    if (wanted /= ranks) write (reason, '(a,i0,3a)') 'world of size ', ranks, ', expected ', &
      trim(expected), ': launcher and MPI library do not match'
  end function

  subroutine help()
    print '(a)', &
      'swe2d CASE             one run, from file to file', &
      'swe2d --serve CASE     stays up and answers enkg; input, output and surface are not used', &
      '', &
      'Shallow water in a square basin with closed walls: from a displacement of the surface to', &
      'tide gauges, one value a minute. Run it alone, or with mpiexec -n RANKS; the gauges do not', &
      'depend on the number of ranks.', &
      '', &
      'CASE is a file with a Fortran namelist:', &
      '  &case', &
      "    input   = 'displacement.bin'  ! raw float64, n x n, x fastest, metres", &
      "    output  = 'gauges.npy'        ! (gauges, minutes) in metres; any other suffix: text", &
      "    gauges  = 'gauges.txt'        ! a line ""x y"" in metres for each gauge", &
      '    n       = 64                  ! cells per side', &
      "    surface = ''                  ! the surface at the end, (n, n), same formats", &
      '    minutes = 60                  ! duration', &
      '    side    = 400e3               ! m', &
      '    deep    = 4000                ! depth at the western wall, m', &
      '    shallow = 200                 ! depth at the eastern wall, m; linear between them', &
      '    sleep   = 0                   ! s to wait before each run, for tests', &
      '  /', &
      'The last six have these defaults.', &
      '', &
      'exit status: 0 good; 2 bad input, or a file that cannot be read or written; 3 the depth', &
      'became zero, negative or NaN. In all cases but 0 no output is written.'
  end subroutine

end program
