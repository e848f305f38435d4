! The files of swe2d: the case, the surface at the start, the gauges, and the arrays it writes.

module files
  use, intrinsic :: iso_c_binding
  use world, only: rename_file
  implicit none

  type :: settings
    character(1024) :: input = '', output = '', surface = '', gauges = ''
    integer :: n = 0, minutes = 60
    real(c_double) :: side = 400e3_c_double, deep = 4000, shallow = 200, sleep = 0
  end type

contains

  subroutine read_case(file, serving, chosen, wrong)
    character(*), intent(in) :: file
    logical, intent(in) :: serving ! then there are no files of input and output
    type(settings), intent(out) :: chosen
    character(*), intent(out) :: wrong
    character(1024) :: input, output, surface, gauges
    integer :: n, minutes, unit, status
    real(c_double) :: side, deep, shallow, sleep
    namelist /case/ input, output, surface, gauges, n, minutes, side, deep, shallow, sleep
    input = ''; output = ''; surface = ''; gauges = ''
    n = chosen%n; minutes = chosen%minutes; side = chosen%side
    deep = chosen%deep; shallow = chosen%shallow; sleep = chosen%sleep
    wrong = ''
    open (newunit=unit, file=file, status='old', action='read', iostat=status, iomsg=wrong)
    if (status /= 0) return
    read (unit, nml=case, iostat=status, iomsg=wrong)
    close (unit)
    if (status /= 0) then
      wrong = trim(file)//': '//wrong
      return
    end if
    wrong = ''
    chosen = settings(input, output, surface, gauges, n, minutes, side, deep, shallow, sleep)
    if (n < 4 .or. n > 8192) wrong = 'n is the number of cells per side, between 4 and 8192'
    if (minutes < 1) wrong = 'minutes must be at least 1'
    if (.not. side > 0) wrong = 'side must be more than 0 m'
    if (.not. min(deep, shallow) > 0) wrong = 'deep and shallow must be more than 0 m'
    if (.not. sleep >= 0) wrong = 'sleep must be at least 0 s'
    if (input == '' .and. .not. serving) wrong = 'input names no file'
    if (output == '' .and. .not. serving) wrong = 'output names no file'
    if (gauges == '') wrong = 'gauges names no file'
    if (wrong /= '') wrong = trim(file)//': '//wrong
  end subroutine

  subroutine read_field(file, field, wrong)
    ! Raw float64, x fastest.
    character(*), intent(in) :: file
    real(c_double), intent(out) :: field(:, :)
    character(*), intent(out) :: wrong
    integer :: unit, status
    integer(c_int64_t) :: bytes
    wrong = ''
    open (newunit=unit, file=file, status='old', action='read', access='stream', &
          form='unformatted', iostat=status, iomsg=wrong)
    if (status /= 0) return
    inquire (unit, size=bytes)
    if (bytes /= 8_c_int64_t*size(field)) then
      write (wrong, '(2a,i0,a,i0,a,i0,a)') trim(file), ' holds ', bytes, &
        ' bytes; expected 8 x ', size(field, 1), ' x ', size(field, 2), ' of float64'
      close (unit)
      return
    end if
    read (unit, iostat=status, iomsg=wrong) field
    close (unit)
    if (status /= 0) return
    wrong = ''
    if (.not. all(abs(field) <= huge(field))) wrong = trim(file)//' holds NaN or infinity'
  end subroutine

  subroutine read_gauges(file, side, places, wrong)
    ! A line "x y" in metres for each gauge; # begins a comment.
    character(*), intent(in) :: file
    real(c_double), intent(in) :: side
    real(c_double), allocatable, intent(out) :: places(:, :)
    character(*), intent(out) :: wrong
    character(256) :: line
    integer :: unit, status, row
    real(c_double) :: place(2)
    allocate (places(2, 0))
    wrong = ''
    open (newunit=unit, file=file, status='old', action='read', iostat=status, iomsg=wrong)
    if (status /= 0) return
    wrong = ''
    row = 0
    do
      read (unit, '(a)', iostat=status) line
      if (status /= 0) exit
      row = row + 1
      line = adjustl(line)
      if (line == '' .or. line(1:1) == '#') cycle
      read (line, *, iostat=status) place
      if (status /= 0) then
        write (wrong, '(2a,i0,a)') trim(file), ', line ', row, ': expected two numbers'
        exit
      end if
      if (.not. all(place > 0 .and. place < side)) then
        write (wrong, '(2a,i0,a)') trim(file), ', line ', row, ': the gauge is outside of the basin'
        exit
      end if
      places = reshape([places, place], [2, size(places, 2) + 1])
    end do
    close (unit)
    if (wrong == '' .and. size(places) == 0) wrong = trim(file)//' holds no gauge'
  end subroutine

  subroutine write_array(file, array, wrong)
    ! .npy, or text for any other name. The first axis of the array is the last one of the file.
    ! Written under another name first: a file of this name is always complete.
    character(*), intent(in) :: file
    real(c_double), intent(in) :: array(:, :)
    character(*), intent(out) :: wrong
    character(:), allocatable :: header, part
    integer :: unit, status, j
    part = file//'.part'
    wrong = ''
    if (index(file, '.npy', back=.true.) == len(file) - 3) then
      open (newunit=unit, file=part, access='stream', form='unformatted', status='replace', &
            iostat=status, iomsg=wrong)
      if (status /= 0) return
      header = npy_header(shape(array))
      write (unit, iostat=status, iomsg=wrong) header, array
    else
      open (newunit=unit, file=part, status='replace', iostat=status, iomsg=wrong)
      if (status /= 0) return
      do j = 1, size(array, 2)
        write (unit, '(*(es25.16e3))', iostat=status, iomsg=wrong) array(:, j)
        if (status /= 0) exit
      end do
    end if
    close (unit)
    if (status /= 0) return
    wrong = ''
    if (rename_file(part//c_null_char, file//c_null_char) /= 0) wrong = 'cannot rename '//part
  end subroutine

  function npy_header(extent) result(header)
    ! Version 1.0; magic, length and text together are a multiple of 64 bytes.
    integer, intent(in) :: extent(2)
    character(:), allocatable :: header
    character(128) :: text
    integer :: length
    write (text, '(a,i0,a,i0,a)') "{'descr': '<f8', 'fortran_order': False, 'shape': (", &
      extent(2), ', ', extent(1), '), }'
    length = 128 - 10
    header = char(147)//'NUMPY'//char(1)//char(0)//char(length)//char(0)// &
             text(1:length - 1)//new_line('a')
  end function

end module
